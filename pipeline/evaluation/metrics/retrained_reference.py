"""How far a model behaves like one that was trained without what is to be forgotten, on the retained
labels and the same seeds."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.evaluation.confidence import share
from pipeline.evaluation.context import REFERENCE, EvalSpec
from pipeline.evaluation.feature_statistics import frechet_distance
from pipeline.evaluation.metrics.fid import moments_of, spaces_of
from pipeline.evaluation.metrics.paired_drift import paired_drift
from pipeline.evaluation.sampling import predictions


def retrained_reference(spec: EvalSpec, partials: Mapping[str, Tensor], side: str) -> dict[str, Any]:
    """`agreement`: share of (label, seed) that the judge predicts the same of. `fid`: the Frechet distance
    between the two models' images. `paired_drift`: mean distance of the same (label, seed). The model
    before is the yardstick: it saw the rows and is otherwise trained alike."""
    labels, ours = predictions(partials, side)
    _, theirs = predictions(partials, REFERENCE)
    same = [(label, a[0] == b[0]) for label, a, b in zip(labels, ours, theirs, strict=True)]
    return {
        "agreement": {
            **(share([hit for _, hit in same]) or {}),
            "per_class": {
                str(one): share([hit for label, hit in same if label == one]) for one in spec.retained
            },
        },
        "fid": {
            space: frechet_distance(
                moments_of(partials, f"{space}/{side}"), moments_of(partials, f"{space}/{REFERENCE}")
            )
            for space in spaces_of(partials, side)
        },
        "paired_drift": paired_drift(spec, partials, side, REFERENCE),
    }
