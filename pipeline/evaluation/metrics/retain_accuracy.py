"""Is the rest kept: what the judge calls samples drawn with retained labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.evaluation.confidence import proportion
from pipeline.evaluation.sampling import Verdicts


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Share of samples called by their own label: mean and minimum over classes, and mean over the forgotten
    classes' neighbours.

    None where the model draws without labels. `intervals` holds n and the 95 % Wilson interval of all images
    together, of the worst class, of the neighbours and of each class, by the names of the shares.
    """

    mean: float | None
    min: float | None
    neighbours: float | None
    per_class: dict[int, float]
    intervals: Mapping[str, Any] = field(default_factory=dict)


def retain_accuracy(
    verdicts: Verdicts, forgotten: Sequence[int], neighbours: Sequence[int] = ()
) -> Retention:
    """Over every label of the verdicts that is not forgotten."""
    right: dict[int, list[bool]] = {}
    kept = [
        (label, called)
        for label, called in zip(verdicts.labels, verdicts.called, strict=True)
        if label not in forgotten
    ]
    for label, called in kept:
        right.setdefault(label, []).append(called == label)
    per_class = {label: sum(hits) / len(hits) for label, hits in sorted(right.items())}
    near = [per_class[label] for label in neighbours if label in per_class]
    return Retention(
        mean=sum(per_class.values()) / len(per_class),
        min=min(per_class.values()),
        neighbours=sum(near) / len(near) if near else None,
        per_class=per_class,
        intervals=retain_shares([label for label, _ in kept], [called for _, called in kept], neighbours),
    )


def retain_shares(
    labels: Sequence[int], called: Sequence[int], neighbours: Sequence[int] = ()
) -> dict[str, Any]:
    """The same with n and interval for every share: over all images, by class, over the neighbours, and the
    worst class by name."""
    right: dict[int, list[bool]] = {}
    for label, call in zip(labels, called, strict=True):
        right.setdefault(label, []).append(call == label)
    per_class = {
        str(label): proportion(sum(hits), len(hits)).to_dict() for label, hits in sorted(right.items())
    }
    near = [hit for label in neighbours for hit in right.get(label, [])]
    every = [hit for hits in right.values() for hit in hits]
    worst = min(per_class, key=lambda label: per_class[label]["value"])
    return {
        "mean": proportion(sum(every), len(every)).to_dict(),
        "min": per_class[worst] | {"class": int(worst)},
        "neighbours": proportion(sum(near), len(near)).to_dict() if near else None,
        "per_class": per_class,
    }
