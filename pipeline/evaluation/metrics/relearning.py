"""Relearning: how many fine-tuning steps on a few forgotten images bring half of the old forget fraction
back.

The same is asked of a label that was never trained (the forgotten label's embedding sampled anew in the same
network). A forgotten label that learns much sooner than that one still held the class.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.generative import GenerativeModel
from pipeline.evaluation.attacks.tuning import copied, renew_labels, tune
from pipeline.evaluation.confidence import proportion
from pipeline.evaluation.context import AFTER, BEFORE, EvalContext, EvalSpec
from pipeline.evaluation.metrics.forget_fraction import forget_fraction
from pipeline.evaluation.partials import Partials, Ranks, Shard
from pipeline.evaluation.rows import few_images
from pipeline.evaluation.sampling import sample_images
from pipeline.unlearning.parameters import select

VARIANTS = ("forgotten_label", "never_trained_label")


def relearning(context: EvalContext, ranks: Ranks) -> Partials:
    """For each variant relearn/<variant>/hits (checks,) and …/sampled (checks,), images after each number of
    steps, up to the first half of all."""
    return {
        name: value
        for index, variant in enumerate(VARIANTS)
        if index % ranks.world_size == ranks.rank
        for name, value in _curve(context, variant).items()
    }


def relearn_steps(spec: EvalSpec, partials: Mapping[str, Tensor], side: str) -> dict[str, Any]:
    """For each variant the first check at which the share is half of the old one, None within the budget,
    and the shares on the way. Without the model before, half of all images is what has to come back."""
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
    spec, s = context.spec, context.spec.settings
    model = copied(context.model)
    if variant == "never_trained_label":
        renew_labels(model, spec)
    checks = s.relearn_checks
    hits, sampled = (torch.zeros(len(checks), dtype=torch.int64) for _ in range(2))

    def half_is_back(step: int) -> bool:
        if step not in checks:
            return False
        index, share = checks.index(step), share_at(context, model, step)
        hits[index], sampled[index] = round(share["value"] * share["n"]), share["n"]
        return 2 * int(hits[index]) >= int(sampled[index])

    model.net.eval()
    if not half_is_back(0):
        tune(
            model,
            select(model, "all"),
            few_images(context, s.relearn_images),
            steps=checks[-1],
            lr=s.relearn_lr,
            batch=s.relearn_batch,
            seed=spec.seed,
            purpose="relearn",
            stop=half_is_back,
        )
    return {f"relearn/{variant}/hits": hits, f"relearn/{variant}/sampled": sampled}


def share_at(context: EvalContext, model: GenerativeModel, step: int) -> dict[str, Any]:
    """The forget fraction of about `relearn_samples` images after `step` steps."""
    spec = context.spec
    few = replace(
        spec,
        retained=(),
        earlier=(),
        settings=spec.settings.model_copy(
            update={"samples": spec.settings.relearn_samples, "null_samples": 0}
        ),
        purpose=f"relearn at {step}",
        joint=True,
        top=1,
    )
    alone = replace(context, model=model, base=None, reference=None, spec=few, real={})
    return forget_fraction(few, sample_images(alone, Shard()), AFTER) or {}


def figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a report shows."""
    return {
        variant.replace("_", " "): f"more than {result['budget']}"
        if result[variant]["steps"] is None
        else str(result[variant]["steps"])
        for variant in VARIANTS
    }
