"""Measured quantities with their 95 % intervals: shares (Wilson) and means (Student)."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

Z = 1.959963984540054  # two-sided 95 %


@dataclass(frozen=True)
class Proportion:
    """`value` = hits / n with the Wilson (1927) score interval [low, high]."""

    value: float
    n: int
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def proportion(hits: int, n: int) -> Proportion:
    """Raises `ValueError` for n = 0: a share of nothing is not a measurement."""
    if not 0 <= hits <= n or n == 0:
        raise ValueError(f"proportion: got {hits} of {n}, expected 0 <= hits <= n and n > 0")
    p = hits / n
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return Proportion(p, n, 0.0 if hits == 0 else centre - half, 1.0 if hits == n else centre + half)


def share(hits: list[bool]) -> dict[str, float] | None:
    """The share of `hits` that are true, as plain data; None of nothing."""
    return proportion(sum(hits), len(hits)).to_dict() if hits else None


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, float]:
    """Share `a` less share `b` with its 95 % interval, of two independent samples (Newcombe 1998, method 10:
    from their Wilson intervals)."""
    value = a["value"] - b["value"]
    return {
        "value": value,
        "low": value - math.hypot(a["value"] - a["low"], b["high"] - b["value"]),
        "high": value + math.hypot(a["high"] - a["value"], b["value"] - b["low"]),
    }


def mean_and_half(sums: Tensor) -> tuple[float, float | None]:
    """Mean and half its 95 % interval (None of a single value) from count, sum and sum of squares (3,)."""
    count, total, squares = (float(value) for value in sums)
    mean = total / count
    if count <= 1:
        return mean, None
    variance = max((squares - count * mean * mean) / (count - 1), 0.0)  # in this order NaN stays NaN
    return mean, half_width(variance, int(count))


def half_width(variance: float, n: int) -> float:
    """Half the 95 % interval of a mean of n > 1 values with that unbiased variance, by Student's t."""
    from scipy.special import stdtrit  # a fifth of a second that no first step waits for

    return float(stdtrit(n - 1, 0.975)) * math.sqrt(variance / n)
