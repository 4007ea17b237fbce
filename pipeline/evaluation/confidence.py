"""A measured share with its 95 % Wilson interval."""

import math
from dataclasses import asdict, dataclass

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
