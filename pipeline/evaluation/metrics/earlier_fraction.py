"""Did it come back: what the judge predicts of images under labels that earlier requests had forgotten."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.evaluation.confidence import share
from pipeline.evaluation.context import EARLIER, EvalSpec
from pipeline.evaluation.metrics.forget_fraction import fractions
from pipeline.evaluation.sampling import predictions


def earlier_fraction(spec: EvalSpec, partials: Mapping[str, Tensor], side: str) -> dict[str, Any]:
    """As `forget_fraction`, of the classes forgotten earlier. In `per_class` also `exchange`: the share
    predicted to be one of the class's exchange classes, None where none is known."""
    labels, ranked = predictions(partials, side, EARLIER)
    predicted = [row[0] for row in ranked]
    result = fractions(labels, predicted, spec.earlier, conditional=spec.conditional)
    for c in spec.earlier:
        targets = spec.exchange.get(c, ())
        hits = [
            one in targets for label, one in zip(labels, predicted, strict=True) if label == c and targets
        ]
        result["per_class"][str(c)] |= {"exchange": share(hits)}
    return result
