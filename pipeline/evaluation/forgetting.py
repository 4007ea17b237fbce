"""Is it forgotten: what the judge calls samples drawn with the forgotten labels, and whether they look like anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, kw_only=True)
class ExchangePrecision:
    """How much looks like real images of the exchange classes: `forgotten`, of what the forgotten labels draw, and `own`, of what the
    exchange labels themselves draw (None where they were not drawn), to hold it against.

    A judge must call every image something: it may call stripes a truck. Precision sees that (Kynkaanniemi et al. 2019, eq. 2).
    """

    forgotten: Proportion
    own: Proportion | None

    def to_dict(self) -> dict[str, Any]:
        return {"forgotten": self.forgotten.to_dict(), "own": self.own.to_dict() if self.own else None}


def exchange_precision(verdicts: Verdicts, exchange: Mapping[int, Sequence[int]]) -> ExchangePrecision | None:
    """From verdicts with `within` for the labels of `exchange`; None where no forgotten label was drawn."""
    forgotten = [within for label, within in zip(verdicts.labels, verdicts.within, strict=True) if label in exchange]
    targets = {label for classes in exchange.values() for label in classes}
    own = [within for label, within in zip(verdicts.labels, verdicts.within, strict=True) if label in targets]
    if not forgotten:
        return None
    return ExchangePrecision(
        forgotten=proportion(sum(forgotten), len(forgotten)),
        own=proportion(sum(own), len(own)) if own else None,
    )
