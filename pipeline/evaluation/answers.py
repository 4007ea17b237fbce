"""Every deletion request that a run answers, measured by itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import Gate
from pipeline.config.request import Answer
from pipeline.evaluation.confidence import proportion
from pipeline.evaluation.gate import forgotten_shares


def answered(answers: Sequence[Answer], after: Mapping[str, Any], gate: Gate) -> list[dict[str, Any]]:
    """The `requests` block of result.json, from its `after` block.

    `forget_fraction` is over the request's classes together, with `per_class`; None for named samples alone.
    `membership_auc` is that of all named samples of the run. `closed`: the upper 95 % bound of each of its
    classes is within the gate's bound, and the loss attack on its samples is not beyond its own beyond doubt,
    either way round. What was not measured is not closed, but for
    samples whose rows were purged.
    """
    return [_answered(answer, after, gate) for answer in answers]


def _answered(answer: Answer, after: Mapping[str, Any], gate: Gate) -> dict[str, Any]:
    per_class = of_classes(after, answer.classes)
    attack = (after.get("membership") or None) if answer.sample_count else None
    gone = per_class.keys() == {str(label) for label in answer.classes} and all(
        share["high"] <= gate.max_forget_fraction for share in per_class.values()
    )
    unseen = not answer.sample_count or (
        attack is not None and max(attack["low"], 1 - attack["high"]) <= gate.max_membership_auc
    )
    return {
        **answer.model_dump(mode="json"),
        "forget_fraction": pooled(per_class),
        "membership_auc": attack and attack["auc"],
        "closed": gone and unseen and bool(answer.classes or answer.sample_count or answer.purged),
    }


def of_classes(after: Mapping[str, Any], classes: Sequence[int]) -> dict[str, Any]:
    """The measured shares of those of `classes` that were measured, by label."""
    measured = forgotten_shares(after)
    return {str(label): measured[str(label)] for label in classes if str(label) in measured}


def pooled(per_class: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The share over all the classes' images, with its interval and `per_class`; None of nothing."""
    if not per_class:
        return None
    n = sum(share["n"] for share in per_class.values())
    hits = sum(round(share["value"] * share["n"]) for share in per_class.values())
    return {**proportion(hits, n).to_dict(), "per_class": dict(per_class)}
