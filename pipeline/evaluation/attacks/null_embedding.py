"""The free-embedding attack by way of guidance: the null label's embedding is free as well, which guidance
subtracts. Whoever holds the weights samples with whatever stands in either place.

What is optimised is the guided prediction u + s (c - u), as it is sampled: c under the forgotten label, u
under the null label, s the CFG scale. N rows, C channels.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from models.generative import GenerativeModel
from pipeline.config.base import Section
from pipeline.config.measuring import Attacks, Measuring, Rates
from pipeline.evaluation.attacks.label_embedding import STARTS, at_rates, free_rows, search_budget
from pipeline.evaluation.attacks.suite import Attempt
from pipeline.evaluation.attacks.tuning import copied, strongest, tune
from pipeline.evaluation.context import EvalContext
from pipeline.evaluation.rows import few_images


class NullEmbeddingSettings(Section):
    steps: int = Field(300, ge=1, description="steps of it against the frozen network")
    lr: Rates = Field(
        [0.05, 0.2], description="learning rates of it, one or several: what shows the class most counts"
    )


class Guided(nn.Module):
    """`net` with guidance at `scale`: its prediction of the noise guided, of the variance under the label."""

    def __init__(self, model: GenerativeModel, scale: float) -> None:
        super().__init__()
        self.net, self.scale, self.null_label = model.net, scale, model.null_label

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        labels = torch.cat([y, torch.full_like(y, self.null_label)])
        conditional, unconditional = self.net(torch.cat([x, x]), torch.cat([t, t]), labels).chunk(2)
        channels = x.shape[1]
        u, c = unconditional[:, :channels], conditional[:, :channels]  # (N, C, H, W)
        return torch.cat([u + self.scale * (c - u), conditional[:, channels:]], dim=1)


def attempts(settings: Attacks, measuring: Measuring, own: NullEmbeddingSettings) -> list[Attempt]:
    ways = {
        "null embedding": ("the null embedding alone", "own", False),
        "label and null embedding from own": ("the label's embedding and the null one", "own", True),
        "label and null embedding from mean": ("the label's embedding and the null one", "mean", True),
    }
    return [
        Attempt(
            name=name,
            about=(
                f"{which}, guided at CFG scale {measuring.cfg_scale:g}, {own.steps} steps of"
                f" {settings.embedding_batch} rows, {at_rates(own.lr)}, the label from"
                f" {STARTS[start].about}, the network frozen"
            ),
            change=partial(attacked_by_null, settings=settings, own=own, start=start, label_too=label_too),
            budget=search_budget(settings, own.steps, own.lr),
        )
        for name, (which, start, label_too) in ways.items()
    ]


def attacked_by_null(
    context: EvalContext, settings: Attacks, own: NullEmbeddingSettings, start: str, label_too: bool
) -> EvalContext:
    """With the null embedding, and the forgotten labels' where `label_too`, optimised on real images of the
    forgotten classes; nothing else has moved."""
    images, spec = few_images(context, settings.embedding_images), context.spec
    free = [context.model.null_label, *(spec.forgotten if label_too else ())]

    def attacked(lr: float) -> EvalContext:
        model = copied(context.model)
        STARTS[start].move(model, spec)
        _tune(model, free, lr)
        return replace(context, model=model)

    def _tune(model: GenerativeModel, rows: Sequence[int], lr: float) -> None:
        net = model.net
        table, mask = free_rows(model, rows)
        model.net = Guided(model, spec.settings.cfg_scale)
        tune(
            model,
            {"labels": table},
            images,
            steps=own.steps,
            lr=lr,
            batch=settings.embedding_batch,
            seed=spec.seed,
            purpose=f"null embedding from {start}",
            mask=mask,
        )
        model.net = net

    return strongest(context, own.lr, settings.choice_samples, attacked)
