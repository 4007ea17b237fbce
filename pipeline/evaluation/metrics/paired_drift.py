"""Paired drift: how far the same seed under the same label moved, in feature space."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.evaluation.context import AFTER, BEFORE, REFERENCE, RETAINED, EvalContext, EvalSpec
from pipeline.evaluation.metrics.fid import spaces_of
from pipeline.evaluation.partials import Partials, add_into, below
from pipeline.evaluation.sampling import Collector, Images


def collect_drift(context: EvalContext) -> Collector:
    """<space>/drift/<a>/<b>/… of every two sides."""
    pairs = [
        pair
        for pair in itertools.combinations((AFTER, BEFORE, REFERENCE), 2)
        if context.sides.keys() >= set(pair)
    ]

    def add(group: str, images: Mapping[str, Images]) -> Partials:
        return {
            f"{space}/drift/{a}/{b}/{name}": value
            for a, b in pairs
            if group == RETAINED
            for space in context.feature_spaces
            for name, value in drift_sums(
                images[a].labels, images[a].features(space), images[b].features(space)
            ).items()
        }

    return Collector(add=add)


def drift_sums(labels: Tensor, first: Tensor, second: Tensor) -> Partials:
    """Distances between paired features (N, F) of two models, by label; and, for scale, between different
    seeds of the second."""
    partials: Partials = {}
    first, second = first.double().cpu(), second.double().cpu()
    for label in labels.unique().tolist():
        at = (labels == label).cpu()
        a, b = first[at], second[at]
        add_into(partials, f"paired/{label}", _counted((a - b).norm(dim=1)))
        if len(b) > 1:
            add_into(partials, "unpaired", _counted((b - b.roll(1, dims=0)).norm(dim=1)))
    return partials


def paired_drift(
    spec: EvalSpec, partials: Mapping[str, Tensor], side: str, other: str = BEFORE
) -> dict[str, Any]:
    """By space the drift of one side from another."""
    return {
        space: mean_drift(below(partials, f"{space}/drift/{side}/{other}"), spec.retained)
        for space in spaces_of(partials, side)
    }


def mean_drift(sums: Mapping[str, Tensor], labels: Sequence[int]) -> dict[str, object]:
    """Mean distance over classes, by class, and as a share of the distance between two images of one class
    (`unpaired`)."""
    per_class = {label: _mean(sums[f"paired/{label}"]) for label in labels if f"paired/{label}" in sums}
    mean = sum(per_class.values()) / len(per_class)
    unpaired = _mean(sums["unpaired"]) if "unpaired" in sums else None
    return {
        "mean": mean,
        "unpaired": unpaired,
        "relative": mean / unpaired if unpaired else None,
        "n": int(sum(sums[f"paired/{label}"][0].item() for label in per_class)),
        "per_class": {str(label): value for label, value in per_class.items()},
    }


def _counted(values: Tensor) -> Tensor:
    return torch.stack([torch.tensor(float(len(values)), dtype=torch.float64), values.sum()])


def _mean(total: Tensor) -> float:
    return float(total[1] / total[0])
