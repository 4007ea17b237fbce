"""Paired drift: how far the same seed under the same label moved, in feature space."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipeline.evaluation.partials import Sums, tally


def drift_sums(labels: Tensor, first: Tensor, second: Tensor) -> Sums:
    """Distances between paired features (N, F) of two models, by label; and, for scale, between different
    seeds of the second."""
    sums: Sums = {}
    first, second = first.double().cpu(), second.double().cpu()
    for label in labels.unique().tolist():
        at = (labels == label).cpu()
        a, b = first[at], second[at]
        tally(sums, f"paired/{label}", _counted((a - b).norm(dim=1)))
        if len(b) > 1:
            tally(sums, "unpaired", _counted((b - b.roll(1, dims=0)).norm(dim=1)))
    return sums


def paired_drift(sums: Mapping[str, Tensor], labels: Sequence[int]) -> dict[str, object]:
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


def _mean(counted: Tensor) -> float:
    return float(counted[1] / counted[0])
