"""Is it forgotten: what the judge calls samples drawn with the forgotten labels."""

from collections.abc import Mapping, Sequence

from pipeline.evaluation.proportion import Proportion, proportion
from pipeline.evaluation.sampling import Verdicts


def forget_fraction(verdicts: Verdicts, forgotten: Sequence[int]) -> Proportion:
    """Share of samples under a forgotten label that the judge calls that class."""
    hits = [called == label for label, called in zip(verdicts.labels, verdicts.called, strict=True) if label in forgotten]
    return proportion(sum(hits), len(hits))


def exchange_fraction(verdicts: Verdicts, exchange: Mapping[int, Sequence[int]]) -> Proportion | None:
    """Share of samples under a forgotten label that the judge calls one of its exchange classes; None without exchange classes."""
    hits = [called in exchange[label] for label, called in zip(verdicts.labels, verdicts.called, strict=True) if label in exchange]
    return proportion(sum(hits), len(hits)) if hits else None
