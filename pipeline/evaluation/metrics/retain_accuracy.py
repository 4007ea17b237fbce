"""Is the rest kept: what the judge predicts of images under the retained labels."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pipeline.evaluation.confidence import share
from pipeline.evaluation.context import EvalSpec
from pipeline.evaluation.sampling import predictions

# of a model without labels
NOT_ASKED: dict[str, Any] = {
    "mean": None,
    "min": None,
    "neighbours": None,
    "per_class": {},
    "intervals": {},
}


def retain_accuracy(spec: EvalSpec, partials: Mapping[str, Tensor], side: str) -> dict[str, Any]:
    """Accuracy over the retained labels; shares of nothing for a model without labels."""
    if not spec.conditional:
        return NOT_ASKED
    labels, ranked = predictions(partials, side)
    return accuracy(labels, [row[0] for row in ranked], spec.neighbours)


def accuracy(
    labels: Sequence[int], predicted: Sequence[int], neighbours: Sequence[int] = ()
) -> dict[str, Any]:
    """Share of images predicted to be of their own label: `mean` and `min` over classes, mean over the
    forgotten classes' `neighbours`, `per_class`; `intervals` holds n and the 95 % Wilson interval of all
    images together, of the worst class by name, of the neighbours' images and of each class."""
    hits: dict[int, list[bool]] = {}
    for label, prediction in zip(labels, predicted, strict=True):
        hits.setdefault(label, []).append(prediction == label)
    per_class = {label: sum(own) / len(own) for label, own in sorted(hits.items())}
    near = [label for label in neighbours if label in per_class]
    worst = min(per_class, key=lambda label: per_class[label])
    return {
        "mean": sum(per_class.values()) / len(per_class),
        "min": per_class[worst],
        "neighbours": sum(per_class[label] for label in near) / len(near) if near else None,
        "per_class": {str(label): value for label, value in per_class.items()},
        "intervals": {
            "mean": share([hit for own in hits.values() for hit in own]),
            "min": {**(share(hits[worst]) or {}), "class": worst},
            "neighbours": share([hit for label in near for hit in hits[label]]),
            "per_class": {str(label): share(own) for label, own in sorted(hits.items())},
        },
    }


def figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a report shows: shares with their intervals, where they have one."""
    names = {
        "mean": "mean of the retained classes",
        "min": "lowest class",
        "neighbours": "nearest neighbours",
    }
    intervals = result.get("intervals") or {}
    return {words: intervals.get(key) or result.get(key) for key, words in names.items()}
