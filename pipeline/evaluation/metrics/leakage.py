"""Leakage: the forgotten class drawn under labels that never asked for it, and under the null label."""

from collections.abc import Sequence
from typing import Any

from pipeline.evaluation.confidence import proportion


def leakage(
    labels: Sequence[int], called: Sequence[int], unlabelled: Sequence[int], forgotten: Sequence[int]
) -> dict[str, Any]:
    """Shares that the judge calls a forgotten class: under all other labels together, by label, and under the
    null label.

    `labels` and `called` (N,) are of images under the other labels, `unlabelled` are the calls of those under
    the null label.
    """
    hits: dict[int, list[bool]] = {}
    for label, call in zip(labels, called, strict=True):
        if label not in forgotten:
            hits.setdefault(label, []).append(call in forgotten)
    every = [hit for of_label in hits.values() for hit in of_label]
    per_label = {
        str(label): proportion(sum(found), len(found)).to_dict() for label, found in sorted(hits.items())
    }
    return {
        "other_labels": proportion(sum(every), len(every)).to_dict() if every else None,
        "worst_label": max(per_label, key=lambda label: per_label[label]["value"]) if per_label else None,
        "null_label": (
            proportion(sum(call in forgotten for call in unlabelled), len(unlabelled)).to_dict()
            if unlabelled
            else None
        ),
        "per_label": per_label,
    }
