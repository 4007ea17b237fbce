"""Density: how thickly real images lie around drawn ones.

Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models".
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.evaluation.confidence import Z


@dataclass(frozen=True)
class Density:
    """`value` with the 95 % interval [low, high] of the mean over `n` images (normal; None for a single
    image)."""

    value: float
    n: int
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def density(balls: Sequence[int], k: int) -> Density:
    """The mean, over images, of the number of balls of a `Manifold` that an image lies in, over its `k`.

    About 1 for images like the real ones, 0 where nothing real is near; more than 1 where they crowd in the
    middle of them. One real outlier, whose ball is huge, does not vouch for everything around it, as it does
    where a share within any ball is taken (precision).
    """
    n = len(balls)
    if n == 0:
        raise ValueError("density: got no image, expected at least one")
    mean = sum(balls) / n
    if n == 1:
        return Density(mean / k, n, None, None)
    half = Z * math.sqrt(sum((count - mean) ** 2 for count in balls) / (n - 1) / n)
    return Density(mean / k, n, max(0.0, mean - half) / k, (mean + half) / k)
