"""The free-embedding attack with an embedding of its own for every stretch of the timesteps: as strong as the
single one at each timestep, and free to ask for something else at each.

C forgotten classes, K buckets of timesteps, D embedding width.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from models.generative import GenerativeModel
from pipeline.config.base import Section
from pipeline.config.measuring import Attacks, Measuring
from pipeline.evaluation.attacks.label_embedding import STARTS
from pipeline.evaluation.attacks.suite import Attempt
from pipeline.evaluation.attacks.tuning import copied, label_weights, tune
from pipeline.evaluation.context import EvalContext
from pipeline.evaluation.rows import few_images


class TimestepEmbeddingSettings(Section):
    buckets: int = Field(5, ge=2, description="equal stretches of the timesteps, an embedding for each")
    steps: int = Field(400, ge=1, description="steps of it against the frozen network")
    lr: float = Field(0.2, gt=0, description="learning rate of it")


class ByTimestep(nn.Module):
    """`net` with embeddings (C, K, D) in place of the rows of the labels `forgotten` in its table."""

    def __init__(self, model: GenerativeModel, forgotten: Sequence[int], buckets: int) -> None:
        super().__init__()
        self.net, self.buckets = model.net, buckets
        self.timesteps = int(model.config["timesteps"])
        table = label_weights(model).detach()
        self.slot = [forgotten.index(c) if c in forgotten else -1 for c in range(len(table))]
        self.table = table
        self.embeddings = nn.Parameter(table[list(forgotten)].unsqueeze(1).repeat(1, buckets, 1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        slot = torch.tensor(self.slot, device=y.device)[y]  # (N,)
        free = self.embeddings[slot.clamp(min=0), t * self.buckets // self.timesteps]  # (N, D)
        return self.net(x, t, torch.where((slot >= 0).unsqueeze(1), free, self.table[y]))


def attempts(settings: Attacks, measuring: Measuring, own: TimestepEmbeddingSettings) -> list[Attempt]:
    return [
        Attempt(
            name=f"{own.buckets} embeddings from {start}",
            about=(
                f"an embedding for each of {own.buckets} stretches of the timesteps, {own.steps} steps,"
                f" lr {own.lr:g}, from {STARTS[start].about}, the network frozen"
            ),
            change=partial(attacked_by_timestep, settings=settings, own=own, start=start),
        )
        for start in ("own", "mean")
    ]


def attacked_by_timestep(
    context: EvalContext, settings: Attacks, own: TimestepEmbeddingSettings, start: str
) -> EvalContext:
    """With such embeddings of the forgotten labels, optimised on real images of their classes; nothing else
    has moved."""
    model, spec = copied(context.model), context.spec
    STARTS[start].move(model, spec)
    for parameter in model.net.parameters():
        parameter.requires_grad_(False)
    net = ByTimestep(model, spec.forgotten, own.buckets)
    model.net = net
    tune(
        model,
        {"embeddings": net.embeddings},
        few_images(context, settings.embedding_images),
        steps=own.steps,
        lr=own.lr,
        batch=settings.embedding_batch,
        seed=spec.seed,
        purpose=f"embeddings by timestep from {start}",
    )
    return replace(context, model=model)
