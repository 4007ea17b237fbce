"""Relearning as an attack: a few images of the class and training of every weight, over a sweep of rates. The
figure is how many steps it takes until a share of the samples shows the class, here and in a model that never
saw it, which learns it as well: what tells is whether it comes sooner here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from pipeline.config.base import Fraction, Section
from pipeline.config.measuring import Attacks, Measuring, Rates
from pipeline.evaluation.attacks.label_embedding import at_rates
from pipeline.evaluation.attacks.suite import Attempt, Outcome
from pipeline.evaluation.context import EvalContext
from pipeline.evaluation.metrics.relearning import relearned
from pipeline.evaluation.rows import few_images


class RelearnSettings(Section):
    images: int = Field(10, ge=1, description="images of a forgotten class that it is taught with, at most")
    lr: Rates = Field([3e-5, 1e-4, 3e-4], description="learning rates, each tried; the soonest counts")
    batch: int = Field(32, ge=1, description="rows in a step")
    checks: Annotated[list[Annotated[int, Field(ge=0)]], AfterValidator(sorted)] = Field(
        [0, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96],
        min_length=1,
        description="steps after which it is judged",
    )
    share: Fraction = Field(0.25, description="share of the samples that has to show the class")
    samples: int = Field(100, ge=20, description="images sampled at each check")


@dataclass(frozen=True, kw_only=True)
class Relearning(Attempt):
    """Under the forgotten label as it is, or begun anew (`fresh_label`)."""

    own: RelearnSettings
    fresh_label: bool

    def measured(self, context: EvalContext, settings: Attacks) -> dict[str, Any]:
        """{relearned: {steps, low, high, lr, budget, curves}}: the first check at which the share is reached
        at the rate where that comes soonest, None where it never is; `low` and `high` are the first at which
        the upper and the lower 95 % bound reach it, at any rate."""
        images = few_images(context, self.own.images)
        curves = {
            lr: relearned(
                context,
                images,
                fresh_label=self.fresh_label,
                lr=lr,
                batch=self.own.batch,
                checks=self.own.checks,
                samples=self.own.samples,
                enough=lambda share: share["low"] >= self.own.share,
            )
            for lr in self.own.lr
        }
        steps = {lr: self._first(curve, "value") for lr, curve in curves.items()}
        soonest = min(steps, key=lambda lr: _order(steps[lr]))
        return {
            "relearned": {
                "steps": steps[soonest],
                "low": min((self._first(curve, "high") for curve in curves.values()), key=_order),
                "high": min((self._first(curve, "low") for curve in curves.values()), key=_order),
                "lr": soonest,
                "budget": self.own.checks[-1],
                "curves": {
                    f"{lr:g}": [{"step": step, **share} for step, share in curve.items()]
                    for lr, curve in curves.items()
                },
            }
        }

    def _first(self, curve: Mapping[int, Outcome], end: str) -> int | None:
        return next((step for step, share in curve.items() if share[end] >= self.own.share), None)

    def compared(self, outcome: Outcome, reference: Outcome | None, bound: float) -> dict[str, Any]:
        """`state`: whether it comes back sooner than in the reference."""
        ours, theirs = outcome.get("relearned"), (reference or {}).get("relearned")
        line = {"relearned": ours, "relearned_in_reference": theirs}
        if ours is None:
            return line | {"state": "failed"}
        return line | {"state": sooner(ours, theirs) if theirs else "uncompared"}


def sooner(ours: Outcome, theirs: Outcome) -> str:
    """`returns`: beyond the doubt of the shares it comes back in fewer steps than in the reference. `holds`:
    it takes as many or more. `open`: fewer, but not beyond doubt."""
    if _order(ours["high"]) < _order(theirs["low"]):
        return "returns"
    return "holds" if _order(ours["steps"]) >= _order(theirs["steps"]) else "open"


def sooner_than_reference(attack_suite: Outcome | None) -> int | None:
    """How many kinds of attack that end in no share (relearning: in steps, inversion: in a loss) get at the
    class more easily here than in the reference, beyond doubt; None where none was compared. Relearning goes
    by the label under which it comes soonest, on either model."""
    lines = (attack_suite or {}).get("attacks", [])
    pairs = [
        (line["relearned"], line["relearned_in_reference"])
        for line in lines
        if line.get("relearned") and line.get("relearned_in_reference")
    ]
    states = [line["state"] for line in lines if line.get("inversion_excess")]
    if pairs:
        ours, theirs = (_soonest(side) for side in zip(*pairs, strict=True))
        states.append(sooner(ours, theirs))
    return states.count("returns") if states else None


def _soonest(outcomes: Sequence[Outcome]) -> dict[str, int | None]:
    return {key: min((outcome[key] for outcome in outcomes), key=_order) for key in ("steps", "low", "high")}


def _order(steps: int | None) -> float:
    return math.inf if steps is None else steps


def attempts(settings: Attacks, measuring: Measuring, own: RelearnSettings) -> list[Attempt]:
    return [
        Relearning(
            name=f"relearn under {label}",
            about=(
                f"every parameter taught again under {label}, {own.checks[-1]} steps of {own.batch} rows at"
                f" most, {at_rates(own.lr)}, until {own.share:.0%} of the samples show the class"
            ),
            budget={
                "images": own.images,
                "steps": own.checks[-1],
                "rows": own.checks[-1] * own.batch,
                "rates": list(own.lr),
            },
            own=own,
            fresh_label=fresh,
        )
        for label, fresh in (("its label", False), ("a new label", True))
    ]
