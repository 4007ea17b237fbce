"""Relearning: how many fine-tuning steps on a few forgotten images bring half of the old forget fraction
back.

The same is asked of a label that was never trained (the forgotten label's embedding sampled anew in the same
network). A forgotten label that learns much sooner than that one still held the class.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.data.batch import Batch
from pipeline.evaluation.attacks.tuning import copied, renew_labels, share_of, tune
from pipeline.evaluation.confidence import proportion
from pipeline.evaluation.context import BEFORE, EvalContext, EvalSpec
from pipeline.evaluation.metrics.forget_fraction import forget_fraction
from pipeline.evaluation.partials import Partials, Ranks
from pipeline.evaluation.rows import NoImagesError, few_images
from pipeline.unlearning.parameters import select

VARIANTS = ("forgotten_label", "never_trained_label")


def relearning(context: EvalContext, ranks: Ranks) -> Partials:
    """For each variant relearn/<variant>/hits (checks,) and …/sampled (checks,), images after each number of
    steps, up to the first half of all. Nothing where there are no images to teach with."""
    try:
        few_images(context, context.spec.settings.relearn_images)
    except NoImagesError:
        return {}
    return {
        name: value
        for index, variant in enumerate(VARIANTS)
        if index % ranks.world_size == ranks.rank
        for name, value in _curve(context, variant).items()
    }


def relearn_steps(spec: EvalSpec, partials: Mapping[str, Tensor], side: str) -> dict[str, Any] | None:
    """For each variant the first check at which the share is half of the old one, None within the budget,
    and the shares on the way. Without the model before, half of all images is what has to come back. None
    where there were no images to teach with."""
    if f"relearn/{VARIANTS[0]}/hits" not in partials:
        return None
    before = f"{BEFORE}/{spec.forgotten_group}/predictions"
    old = (forget_fraction(spec, partials, BEFORE) or {})["value"] if before in partials else 1.0
    checks = spec.settings.relearn_checks
    result: dict[str, Any] = {"threshold": old / 2, "budget": checks[-1]}
    for variant in VARIANTS:
        hits, sampled = (partials[f"relearn/{variant}/{name}"].tolist() for name in ("hits", "sampled"))
        curve = [(step, proportion(h, n).to_dict()) for step, h, n in zip(checks, hits, sampled) if n]
        reached = [step for step, share in curve if share["value"] >= old / 2]
        result[variant] = {
            "steps": reached[0] if reached else None,
            "curve": [{"step": step, **share} for step, share in curve],
        }
    return result


def _curve(context: EvalContext, variant: str) -> Partials:
    s = context.spec.settings
    hits, sampled = (torch.zeros(len(s.relearn_checks), dtype=torch.int64) for _ in range(2))
    curve = relearned(
        context,
        few_images(context, s.relearn_images),
        fresh_label=variant == "never_trained_label",
        lr=s.relearn_lr,
        batch=s.relearn_batch,
        checks=s.relearn_checks,
        samples=s.relearn_samples,
        enough=lambda share: 2 * round(share["value"] * share["n"]) >= share["n"],
    )
    for step, share in curve.items():
        index = s.relearn_checks.index(step)
        hits[index], sampled[index] = round(share["value"] * share["n"]), share["n"]
    return {f"relearn/{variant}/hits": hits, f"relearn/{variant}/sampled": sampled}


def relearned(
    context: EvalContext,
    images: Batch,
    *,
    fresh_label: bool,
    lr: float,
    batch: int,
    checks: Sequence[int],
    samples: int,
    enough: Callable[[Mapping[str, Any]], bool],
) -> dict[int, dict[str, Any]]:
    """Teach a copy of the model the class again, every parameter, under its label as it is or begun anew:
    the forget fraction of about `samples` images after each number of steps in `checks`, up to the first
    that is `enough`."""
    spec, model = context.spec, copied(context.model)
    if fresh_label:
        renew_labels(model, spec)
    curve: dict[int, dict[str, Any]] = {}

    def is_back(step: int) -> bool:
        if step not in checks:
            return False
        curve[step] = share_of(context, model, samples, f"relearn at {step}")
        return enough(curve[step])

    model.net.eval()
    if not is_back(0):
        tune(
            model,
            select(model, "all"),
            images,
            steps=checks[-1],
            lr=lr,
            batch=batch,
            seed=spec.seed,
            purpose="relearn",
            stop=is_back,
        )
    return curve


def figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a report shows."""
    return {
        variant.replace("_", " "): f"more than {result['budget']}"
        if result[variant]["steps"] is None
        else str(result[variant]["steps"])
        for variant in VARIANTS
    }
