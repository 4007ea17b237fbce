"""Unconditional models: which classes their images are, as the judge sees them, and whether what is kept is
still sampled as before.

A model without labels cannot be asked for a class, so retention is about shares: forgetting a class should
leave the others in the proportions they had among themselves.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pipeline.evaluation.confidence import Proportion, proportion
from pipeline.evaluation.context import EvalSpec
from pipeline.evaluation.sampling import predictions


def class_shares(spec: EvalSpec, partials: Mapping[str, Tensor], side: str) -> dict[str, Any]:
    """Shares of all images."""
    _, ranked = predictions(partials, side)
    return shares([row[0] for row in ranked], spec.num_classes)


def shares(predicted: Sequence[int], num_classes: int) -> dict[str, Any]:
    """`per_class` by label, `n`, and `chance`: the share of a class among images that are spread evenly."""
    n = len(predicted)
    return {
        "per_class": {str(label): predicted.count(label) / n for label in range(num_classes)},
        "n": n,
        "chance": 1 / num_classes,
    }


def overlap(now: Mapping[str, Any], before: Mapping[str, Any], forgotten: Sequence[int]) -> Proportion | None:
    """How much of the kept classes' mixture is as it was: sum of min(now, before), both among the kept.
    None when none is left."""
    counts = {
        label: round(value * now["n"])
        for label, value in now["per_class"].items()
        if int(label) not in forgotten
    }
    n = sum(counts.values())
    if n == 0:
        return None
    was = renormalised(before, forgotten)
    common = sum(min(count / n, was[label]) for label, count in counts.items())
    return proportion(round(n * min(1.0, common)), n)


def renormalised(before: Mapping[str, Any], forgotten: Sequence[int]) -> dict[str, float]:
    """The kept classes' shares among themselves; zeros when nothing else is sampled."""
    retained = {label: value for label, value in before["per_class"].items() if int(label) not in forgotten}
    whole = sum(retained.values())
    return {label: value / whole if whole else 0.0 for label, value in retained.items()}


def drift(before: Mapping[str, Any], after: Mapping[str, Any], forgotten: Sequence[int]) -> dict[str, float]:
    """By kept class: its share of all images now, less its share before among the kept classes."""
    was = renormalised(before, forgotten)
    return {label: after["per_class"][label] - value for label, value in was.items()}
