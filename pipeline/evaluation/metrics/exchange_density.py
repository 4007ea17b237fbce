"""Does what is sampled instead look like anything: how thickly real images of the exchange class lie around
it.

Density of Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models".
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.evaluation.confidence import half_width
from pipeline.evaluation.context import JUDGE, RETAINED, EvalContext, EvalSpec
from pipeline.evaluation.partials import Partials, scatter
from pipeline.evaluation.rows import exchange_manifolds
from pipeline.evaluation.sampling import Collector, Images, group_sizes


def collect_balls(context: EvalContext) -> Collector:
    """<side>/<group>/balls (n, 2) of the first `manifold_samples` images of a group: whether an image's
    label has real rows to be held against, and in how many of their balls it lies."""
    spec, of_class = context.spec, exchange_manifolds(context)
    of_label = {label: balls for c, balls in of_class.items() for label in (*spec.exchange[c], c)}
    sizes = {
        group: min(n, spec.settings.manifold_samples)
        for group, n in group_sizes(spec).items()
        if group in (RETAINED, spec.forgotten_group)
    }

    def add(group: str, images: Mapping[str, Images]) -> Partials:
        partials: Partials = {}
        for side, own in images.items() if group in sizes and of_label else ():
            values = torch.zeros(len(own.labels), 2, dtype=torch.int64)
            for label in set(own.labels.tolist()) & of_label.keys():
                index = (own.labels == label).nonzero().flatten()
                values[index, 0] = 1
                values[index, 1] = of_label[label].balls_around(own.features(JUDGE)[index])
            partials[f"{side}/{group}/balls"] = scatter(sizes[group], own.positions, values)
        return partials

    zeros = {
        f"{side}/{group}/balls": torch.zeros(n, 2, dtype=torch.int64)
        for side in context.sides
        for group, n in sizes.items()
    }
    return Collector(add=add, zeros=zeros)


def exchange_density(spec: EvalSpec, partials: Mapping[str, Tensor], side: str) -> dict[str, Any] | None:
    """Density of real images of the exchange classes around images under the forgotten labels
    (`forgotten`) and under the exchange labels themselves (`own`, None where they were not sampled), to
    hold it against.

    A judge must predict some class of every image: it may take stripes for a truck. This sees that no real
    truck looks like them. None where there are no real rows.
    """

    def of(group: str) -> dict[str, Any] | None:
        balls = partials[f"{side}/{group}/balls"]
        counts = balls[balls[:, 0] == 1, 1].tolist()
        return density(counts, spec.settings.manifold_k) if counts else None

    forgotten = of(spec.forgotten_group)
    return {"forgotten": forgotten, "own": of(RETAINED)} if forgotten else None


def density(balls: Sequence[int], k: int) -> dict[str, Any]:
    """The mean, over images, of the number of balls of a `Manifold` that an image lies in, over its `k`,
    with the 95 % interval of the mean (Student; None for a single image).

    About 1 for images like the real ones, 0 where nothing real is near; more than 1 where they crowd in the
    middle of them. One real outlier, whose ball is huge, does not vouch for everything around it, as it does
    where a share within any ball is taken (precision).
    """
    n = len(balls)
    if n == 0:
        raise ValueError("density: got no image, expected at least one")
    mean, low, high = sum(balls) / n, None, None
    if n > 1:
        variance = sum((count - mean) ** 2 for count in balls) / (n - 1)
        # where all counts are equal, one that differs by a ball would have gone unseen
        half = half_width(max(variance, 1 / (n + 1)), n)
        low, high = max(mean - half, 0.0) / k, (mean + half) / k
    return {"value": mean / k, "n": n, "low": low, "high": high}
