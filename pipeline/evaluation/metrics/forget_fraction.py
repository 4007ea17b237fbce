"""Is it forgotten: what the judge predicts of images under the forgotten labels."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.evaluation.confidence import share
from pipeline.evaluation.context import EvalSpec, forgotten_at
from pipeline.evaluation.sampling import predictions


def forget_fraction(spec: EvalSpec, partials: Mapping[str, Tensor], side: str) -> dict[str, Any] | None:
    """Share of images under a forgotten label that are predicted to be that class; of a model without labels,
    of all images that are predicted to be any forgotten class.

    With several predictions an image also `top5`, the share that has the class among the first five; with
    several CFG scales `at_cfg_scale`.
    """

    def at(cfg_scale: float) -> dict[str, Any]:
        labels, ranked = predictions(partials, side, forgotten_at(cfg_scale))
        gone = [{label} if spec.conditional else set(spec.forgotten) for label in labels]
        result: dict[str, Any] = dict(share([row[0] in classes for classes, row in zip(gone, ranked)]) or {})
        if spec.top > 1:
            result["top5"] = share([bool(classes & set(row)) for classes, row in zip(gone, ranked)])
        return result

    s = spec.settings
    further = {f"{scale:g}": at(scale) for scale in s.cfg_scales} if not spec.joint else {}
    return at(s.cfg_scale) | ({"at_cfg_scale": further} if further else {})
