"""Leakage: the forgotten class sampled under labels that never asked for it, and under the null label."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pipeline.evaluation.confidence import share
from pipeline.evaluation.context import UNLABELLED, EvalSpec
from pipeline.evaluation.sampling import predictions


def leakage(spec: EvalSpec, partials: Mapping[str, Tensor], side: str) -> dict[str, Any]:
    """Shares that are predicted to be a forgotten class, now or earlier: under all other labels together, by
    label, and under the null label (None where it was not sampled)."""
    labels, ranked = predictions(partials, side)
    unlabelled: list[list[int]] = []
    if f"{side}/{UNLABELLED}/predictions" in partials:
        _, unlabelled = predictions(partials, side, UNLABELLED)
    return leaked(labels, [row[0] for row in ranked], [row[0] for row in unlabelled], spec.gone)


def leaked(
    labels: Sequence[int], predicted: Sequence[int], unlabelled: Sequence[int], forgotten: Sequence[int]
) -> dict[str, Any]:
    """`labels` and `predicted` (N,) are of images under the other labels, `unlabelled` are the predictions
    of those under the null label."""
    hits: dict[int, list[bool]] = {}
    for label, prediction in zip(labels, predicted, strict=True):
        if label not in forgotten:
            hits.setdefault(label, []).append(prediction in forgotten)
    per_label = {str(label): share(of_label) or {} for label, of_label in sorted(hits.items())}
    return {
        "other_labels": share([hit for of_label in hits.values() for hit in of_label]),
        "worst_label": max(per_label, key=lambda label: per_label[label]["value"]) if per_label else None,
        "null_label": share([prediction in forgotten for prediction in unlabelled]),
        "per_label": per_label,
    }
