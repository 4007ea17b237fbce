"""Is it forgotten: what the judge calls samples drawn with the forgotten labels, and whether they look like
anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.confidence import Proportion, proportion
from pipeline.evaluation.metrics.density import Density, density
from pipeline.evaluation.metrics.manifold import K
from pipeline.evaluation.sampling import Verdicts


def forget_fraction(verdicts: Verdicts, forgotten: Sequence[int]) -> Proportion:
    """Share of samples under a forgotten label that the judge calls that class."""
    hits = [
        called == label
        for label, called in zip(verdicts.labels, verdicts.called, strict=True)
        if label in forgotten
    ]
    return proportion(sum(hits), len(hits))


def exchange_fraction(verdicts: Verdicts, exchange: Mapping[int, Sequence[int]]) -> Proportion | None:
    """Share of samples under a forgotten label that the judge calls one of its exchange classes; None without
    exchange classes."""
    hits = [
        called in exchange[label]
        for label, called in zip(verdicts.labels, verdicts.called, strict=True)
        if label in exchange
    ]
    return proportion(sum(hits), len(hits)) if hits else None


@dataclass(frozen=True, kw_only=True)
class ExchangeDensity:
    """How thickly real images of the exchange classes lie around what the labels draw: `forgotten`, the
    forgotten ones, and `own`, the exchange labels themselves (None where they were not drawn), to hold it
    against.

    A judge must call every image something: it may call stripes a truck. This sees that no real truck looks
    like them.
    """

    forgotten: Density
    own: Density | None

    def to_dict(self) -> dict[str, Any]:
        return {"forgotten": self.forgotten.to_dict(), "own": self.own.to_dict() if self.own else None}


def exchange_density(
    verdicts: Verdicts, exchange: Mapping[int, Sequence[int]], k: int = K
) -> ExchangeDensity | None:
    """From verdicts with `balls` for the labels of `exchange`; None where no forgotten label was drawn."""
    targets = {label for classes in exchange.values() for label in classes}
    of_label = list(zip(verdicts.labels, verdicts.balls, strict=True))
    forgotten = [balls for label, balls in of_label if label in exchange]
    own = [balls for label, balls in of_label if label in targets]
    return (
        ExchangeDensity(forgotten=density(forgotten, k), own=density(own, k) if own else None)
        if forgotten
        else None
    )
