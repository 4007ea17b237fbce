"""Improved precision and recall (Kynkaanniemi et al. 2019): which images lie within the other set's
k-nearest-neighbour balls."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.evaluation.confidence import Proportion, proportion
from pipeline.evaluation.context import RETAINED, EvalContext, EvalSpec
from pipeline.evaluation.manifold import Manifold
from pipeline.evaluation.metrics.fid import spaces_of
from pipeline.evaluation.partials import Partials, scatter
from pipeline.evaluation.sampling import Collector, Images, group_sizes


def collect_features(context: EvalContext) -> Collector:
    """<space>/<side>/features (n, F) of the first `manifold_samples` images under retained labels."""
    n = min(context.spec.settings.manifold_samples, group_sizes(context.spec)[RETAINED])

    def add(group: str, images: Mapping[str, Images]) -> Partials:
        return {
            f"{space}/{side}/features": scatter(n, own.positions, own.features(space).double())
            for side, own in images.items()
            if group == RETAINED
            for space in context.feature_spaces
        }

    return Collector(add=add)


def precision_recall(spec: EvalSpec, partials: Mapping[str, Tensor], side: str) -> dict[str, Any] | None:
    """By space; None where there are not more than k images and rows."""
    k = spec.settings.manifold_k
    result: dict[str, Any] = {"k": k}
    for space in spaces_of(partials, side):
        sampled, real = partials[f"{space}/{side}/features"], partials[f"{space}/real/features"]
        if min(len(sampled), len(real)) <= k:
            return None
        result[space] = {name: one.to_dict() for name, one in coverage(sampled, real, k).items()}
    return result


def coverage(sampled: Tensor, real: Tensor, k: int) -> dict[str, Proportion]:
    """Precision: share of the `sampled` features (N, F) that look real. Recall: share of the `real` ones
    (M, F) that the model could sample."""
    return {
        "precision": within(sampled, Manifold.of(real, k)),
        "recall": within(real, Manifold.of(sampled, k)),
    }


def within(rows: Tensor, manifold: Manifold) -> Proportion:
    """Share of `rows` (N, F) that lie within some ball (eq. 1 and 2)."""
    return proportion(int((manifold.balls_around(rows) > 0).sum()), len(rows))
