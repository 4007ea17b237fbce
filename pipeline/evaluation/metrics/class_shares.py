"""Unconditional models: which classes their samples are, as the judge sees them, and whether what is kept is
still drawn as before.

A model without labels cannot be asked for a class, so retention is about shares: forgetting a class should
leave the others in the proportions they had among themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.confidence import Proportion, proportion


@dataclass(frozen=True, kw_only=True)
class Shares:
    """`counts` of samples that the judge calls each class, all classes named."""

    counts: Mapping[int, int]

    @property
    def n(self) -> int:
        return sum(self.counts.values())

    def of(self, classes: Sequence[int]) -> Proportion:
        return proportion(sum(self.counts[label] for label in classes), self.n)

    def to_dict(self) -> dict[str, Any]:
        """`per_class` by label, `n`, and `chance`: the share of a class among samples that
        are spread evenly."""
        return {
            "per_class": {str(label): count / self.n for label, count in self.counts.items()},
            "n": self.n,
            "chance": 1 / len(self.counts),
        }

    def overlap(self, before: Mapping[str, Any], forgotten: Sequence[int]) -> Proportion | None:
        """How much of the kept classes' mixture is as it was: sum of min(now, before), both among the kept.
        None when none is left."""
        kept = {str(label): count for label, count in self.counts.items() if label not in forgotten}
        n = sum(kept.values())
        if n == 0:
            return None
        was = renormalised(before, forgotten)
        return proportion(
            round(n * min(1.0, sum(min(count / n, was[label]) for label, count in kept.items()))), n
        )


def shares_of(called: Sequence[int], classes: int) -> Shares:
    return Shares(counts={label: sum(1 for call in called if call == label) for label in range(classes)})


def renormalised(shares: Mapping[str, Any], forgotten: Sequence[int]) -> dict[str, float]:
    """The kept classes' shares among themselves, from `to_dict`'s form; zeros when nothing else is drawn."""
    kept = {label: share for label, share in shares["per_class"].items() if int(label) not in forgotten}
    whole = sum(kept.values())
    return {label: share / whole if whole else 0.0 for label, share in kept.items()}


def drift(before: Mapping[str, Any], after: Mapping[str, Any], forgotten: Sequence[int]) -> dict[str, float]:
    """By kept class: its share of all samples now, less its share before among the kept classes."""
    was = renormalised(before, forgotten)
    return {label: after["per_class"][label] - share for label, share in was.items()}
