"""Is it forgotten: what the judge predicts of images under the forgotten labels."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pipeline.evaluation.confidence import share
from pipeline.evaluation.context import EvalSpec, forgotten_at
from pipeline.evaluation.sampling import predictions


def forget_fraction(spec: EvalSpec, partials: Mapping[str, Tensor], side: str) -> dict[str, Any] | None:
    """Share of images under a forgotten label that are predicted to be that class; of a model without labels,
    of all images that are predicted to be any forgotten class. `per_class`: each forgotten class by itself.

    With several predictions an image also `top5`, the share that has the class among the first five; with
    several CFG scales `at_cfg_scale`.
    """

    def at(cfg_scale: float) -> dict[str, Any]:
        labels, ranked = predictions(partials, side, forgotten_at(cfg_scale))
        gone = [{label} if spec.conditional else set(spec.forgotten) for label in labels]
        result = fractions(labels, [row[0] for row in ranked], spec.forgotten, conditional=spec.conditional)
        if spec.top > 1:
            result["top5"] = share([bool(classes & set(row)) for classes, row in zip(gone, ranked)])
        return result

    s = spec.settings
    further = {f"{scale:g}": at(scale) for scale in s.cfg_scales} if not spec.joint else {}
    return at(s.cfg_scale) | ({"at_cfg_scale": further} if further else {})


def fractions(
    labels: Sequence[int], predicted: Sequence[int], classes: Sequence[int], *, conditional: bool
) -> dict[str, Any]:
    """{value, n, low, high, per_class} of images under the labels of `classes`, or under none."""
    hits = [
        prediction == label if conditional else prediction in classes
        for label, prediction in zip(labels, predicted, strict=True)
    ]
    per_class = {
        str(c): share(
            [
                prediction == c
                for label, prediction in zip(labels, predicted, strict=True)
                if label == c or not conditional
            ]
        )
        for c in classes
    }
    return {**(share(hits) or {}), "per_class": per_class}
