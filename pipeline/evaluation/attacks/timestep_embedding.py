"""The free-embedding attack with an embedding of its own for every stretch of the timesteps: as strong as the
single one at each timestep, and free to ask for something else at each.

C forgotten classes, K buckets of timesteps, D embedding width.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from models.generative import GenerativeModel
from pipeline.config.base import Section
from pipeline.config.measuring import Attacks, Measuring, Rates
from pipeline.evaluation.attacks.label_embedding import STARTS, at_rates, search_budget
from pipeline.evaluation.attacks.suite import Attempt
from pipeline.evaluation.attacks.tuning import copied, strongest, tune
from pipeline.evaluation.context import EvalContext
from pipeline.evaluation.rows import few_images
from pipeline.unlearning.parameters import label_weights

Buckets = Annotated[
    list[Annotated[int, Field(ge=2)]],
    BeforeValidator(lambda value: value if isinstance(value, list) else [value]),
]


class TimestepEmbeddingSettings(Section):
    buckets: Buckets = Field(
        [5, 10],
        min_length=1,
        description="equal stretches of the timesteps, an embedding for each; one number, or several to try",
    )
    steps: int = Field(400, ge=1, description="steps of it against the frozen network")
    lr: Rates = Field(
        [0.05, 0.2], description="learning rates of it, one or several: what shows the class most counts"
    )


class ByTimestep(nn.Module):
    """`net` with embeddings (C, K, D) in place of the rows of the labels `forgotten` in its table."""

    def __init__(self, model: GenerativeModel, forgotten: Sequence[int], buckets: int) -> None:
        super().__init__()
        self.net, self.buckets = model.net, buckets
        self.time = model.time
        table = label_weights(model).detach()
        self.slot = [forgotten.index(c) if c in forgotten else -1 for c in range(len(table))]
        self.table = table
        self.embeddings = nn.Parameter(table[list(forgotten)].unsqueeze(1).repeat(1, buckets, 1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        slot = torch.tensor(self.slot, device=y.device)[y]  # (N,)
        free = self.embeddings[slot.clamp(min=0), self.time.bucket(t, self.buckets)]  # (N, D)
        return self.net(x, t, torch.where((slot >= 0).unsqueeze(1), free, self.table[y]))


def attempts(settings: Attacks, measuring: Measuring, own: TimestepEmbeddingSettings) -> list[Attempt]:
    return [
        Attempt(
            name=f"{buckets} embeddings from {start}",
            about=(
                f"an embedding for each of {buckets} stretches of the timesteps, {own.steps} steps of"
                f" {settings.embedding_batch} rows, {at_rates(own.lr)}, from {STARTS[start].about}, the"
                " network frozen"
            ),
            change=partial(attacked_by_timestep, settings=settings, own=own, buckets=buckets, start=start),
            budget=search_budget(settings, own.steps, own.lr),
        )
        for buckets in own.buckets
        for start in ("own", "mean")
    ]


def attacked_by_timestep(
    context: EvalContext, settings: Attacks, own: TimestepEmbeddingSettings, buckets: int, start: str
) -> EvalContext:
    """With such embeddings of the forgotten labels, optimised on real images of their classes at the rate
    that shows the class most; nothing else has moved."""
    images = few_images(context, settings.embedding_images)

    def attacked(lr: float) -> EvalContext:
        model, spec = copied(context.model), context.spec
        STARTS[start].move(model, spec)
        for parameter in model.net.parameters():
            parameter.requires_grad_(False)
        net = ByTimestep(model, spec.forgotten, buckets)
        model.net = net
        tune(
            model,
            {"embeddings": net.embeddings},
            images,
            steps=own.steps,
            lr=lr,
            batch=settings.embedding_batch,
            seed=spec.seed,
            purpose=f"embeddings by timestep from {start}",
        )
        return replace(context, model=model)

    return strongest(context, own.lr, settings.choice_samples, attacked)
