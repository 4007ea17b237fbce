"""Frechet distance of images under the retained labels to real retained rows (Heusel et al. 2017), in every
feature space."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipeline.evaluation.context import JUDGE, RETAINED, EvalContext, EvalSpec
from pipeline.evaluation.feature_statistics import Moments, frechet_distance, merged
from pipeline.evaluation.partials import Partials, add_into, below
from pipeline.evaluation.sampling import Collector, Images

ALL = "all"
BY_LABEL = 64  # labels whose sums stay apart: with 768 features 1,000 of them would be 4.7 GB


def collect_moments(context: EvalContext) -> Collector:
    """<space>/<side>/moments/<part> (1 + F + F^2,) of the retained labels' images; `part` is `all` or, in
    a joint plan of few labels and the judge's space, the label."""
    spec = context.spec

    def parts(space: str) -> list[str]:
        by_label = spec.joint and spec.conditional and space == JUDGE and len(spec.retained) <= BY_LABEL
        return [str(label) for label in spec.retained] if by_label else [ALL]

    def add(group: str, images: Mapping[str, Images]) -> Partials:
        partials: Partials = {}
        for side, own in images.items() if group == RETAINED else ():
            for space in context.feature_spaces:
                features = own.features(space)
                for part in parts(space):
                    rows = features if part == ALL else features[own.labels == int(part)]
                    if len(rows):
                        add_into(partials, f"{space}/{side}/moments/{part}", Moments.of(rows).packed())
        return partials

    zeros = {
        f"{space}/{side}/moments/{part}": torch.zeros(1 + size + size * size, dtype=torch.float64)
        for space, size in ((name, one.feature_size) for name, one in context.feature_spaces.items())
        for side in context.sides
        for part in parts(space)
    }
    return Collector(add=add, zeros=zeros)


def moments_of(partials: Mapping[str, Tensor], prefix: str, retained: Sequence[int] = ()) -> Moments:
    """Those that `partials` hold as `prefix`, <space>/<side>."""
    parts = below(partials, f"{prefix}/moments")
    names = [ALL] if ALL in parts else [str(label) for label in retained]
    return merged([Moments.unpacked(parts[name]) for name in names])


def spaces_of(partials: Mapping[str, Tensor], side: str) -> list[str]:
    """The feature spaces that a side and real rows were both looked at in, the judge's first."""
    real = [name.removesuffix("/real/moments/all") for name in partials if name.endswith("/real/moments/all")]
    return [space for space in real if below(partials, f"{space}/{side}/moments")]


def fid(spec: EvalSpec, partials: Mapping[str, Tensor], side: str) -> dict[str, float | None]:
    """The distance by space, None for one that is no number; none where no real rows are known."""
    distances = {
        space: frechet_distance(
            moments_of(partials, f"{space}/{side}", spec.retained), moments_of(partials, f"{space}/real")
        )
        for space in spaces_of(partials, side)
    }
    return {space: distance if math.isfinite(distance) else None for space, distance in distances.items()}
