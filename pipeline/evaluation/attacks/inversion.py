"""Inversion of real images: does the network, under the best embedding that an attacker finds, still denoise
images of the class better than a model that never saw it does? A loss, not a share: it speaks also where no
sample shows the class.

The class's images are cut in two: the attacker searches with one half, the loss is taken of the
other, at noises that depend on the image alone, so that both models are asked the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from pydantic import Field

from pipeline.config.base import Fraction, Section
from pipeline.config.measuring import Attacks, Measuring
from pipeline.data.batch import Batch, Side
from pipeline.evaluation.attacks.label_embedding import at_rates, attacked_by_embedding, search_budget
from pipeline.evaluation.attacks.suite import Attempt, Outcome
from pipeline.evaluation.confidence import mean_and_half
from pipeline.evaluation.context import EvalContext, Split
from pipeline.evaluation.metrics.membership import row_losses
from pipeline.evaluation.partials import Shard, moments_of_values
from pipeline.evaluation.rows import NoImagesError
from pipeline.seeding import generator


class InversionSettings(Section):
    noises: int = Field(16, ge=1, description="noises over which an image's loss is averaged")
    margin: Fraction = Field(
        0.05, description="share of the reference's loss below which a lower loss is taken for none"
    )


@dataclass(frozen=True, kw_only=True)
class Inversion(Attempt):
    own: InversionSettings

    def measured(self, context: EvalContext, settings: Attacks) -> dict[str, Any]:
        """{inversion: {loss, low, high, n, losses}}, in the order of the images: under the embedding of all
        starts and rates whose loss on the attacker's own images is least."""
        own, images = halves(context)

        def rows(labels: Sequence[int], split: Split) -> Side:
            if split != context.spec.settings.attacker_images:
                return context.rows(labels, split)
            return own.take([index for index, y in enumerate(own.y.tolist()) if y in labels])

        searching = replace(context, rows=rows)
        models = [
            attacked_by_embedding(searching, settings.model_copy(update={"embedding_lr": [lr]}), start).model
            for start in settings.embedding_starts
            for lr in settings.embedding_lr
        ]
        losses = partial(
            row_losses,
            noises=self.own.noises,
            seed=context.spec.seed,
            batch=context.spec.settings.block,
            ranks=Shard(),
        )
        best = min(models, key=lambda model: float(losses(model, own).mean()))
        return {"inversion": _summary(losses(best, images))}

    def _images(self, context: EvalContext) -> dict[str, int]:
        own = halves(context)[0].y.tolist()
        return {"images": min(own.count(label) for label in context.spec.forgotten)}

    def compared(self, outcome: Outcome, reference: Outcome | None, bound: float) -> dict[str, Any]:
        """`inversion_excess`: the loss here less the reference's, of the same images at the same noises, with
        the 95 % interval of the mean."""
        ours, theirs = outcome.get("inversion"), (reference or {}).get("inversion")
        line: dict[str, Any] = {
            "inversion": ours and _without_losses(ours),
            "inversion_of_reference": theirs and _without_losses(theirs),
            "inversion_excess": None,
        }
        if ours is None:
            return line | {"state": "failed"}
        if theirs is None:
            return line | {"state": "uncompared"}
        pairs = torch.tensor(ours["losses"]) - torch.tensor(theirs["losses"])
        excess = _summary(pairs)
        least = -self.own.margin * theirs["loss"]
        state = "returns" if excess["high"] < least else "holds" if excess["low"] >= least else "open"
        return line | {"inversion_excess": _without_losses(excess), "state": state}


def halves(context: EvalContext) -> tuple[Batch, Batch]:
    """The images of the forgotten classes that are at hand for attacks: those of the attacker, and those
    whose loss is taken. Raises `NoImagesError` for a class with fewer than four."""
    spec, split = context.spec, context.spec.settings.attacker_images
    rows = context.rows(list(spec.forgotten), split)
    own: list[int] = []
    others: list[int] = []
    for label in spec.forgotten:
        positions = [index for index, y in enumerate(rows.y.tolist()) if y == label]
        if len(positions) < 4:
            raise NoImagesError(
                f"{len(positions)} images of class {label} are left for the attacker, expected 4 {split} rows"
                " in the lake: half to search with, half to measure (measuring.attacker_images)"
            )
        order = torch.randperm(len(positions), generator=generator(spec.seed, "inversion", label)).tolist()
        half = len(positions) // 2
        own += [positions[index] for index in order[:half]]
        others += [positions[index] for index in order[half:]]
    return rows.take(sorted(own)), rows.take(sorted(others))


def _summary(losses: torch.Tensor) -> dict[str, Any]:
    mean, half = mean_and_half(moments_of_values(losses))
    return {
        "loss": mean,
        "low": mean - (half or 0.0),
        "high": mean + (half or 0.0),
        "n": len(losses),
        "losses": losses.tolist(),
    }


def _without_losses(summary: Outcome) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key != "losses"}


def attempts(settings: Attacks, measuring: Measuring, own: InversionSettings) -> list[Attempt]:
    return [
        Inversion(
            name="inversion",
            about=(
                f"loss on other images of the class under the best embedding, {settings.embedding_steps}"
                f" steps of {settings.embedding_batch} rows, {at_rates(settings.embedding_lr)}, the network"
                " frozen"
            ),
            budget=search_budget(settings, settings.embedding_steps, settings.embedding_lr),
            own=own,
        )
    ]
