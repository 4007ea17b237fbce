"""Kernel distance (KID): the unbiased squared MMD with a cubic kernel, averaged over blocks (Binkowski et al.
2018, section 4)."""

import math

import torch
from torch import Tensor

from pipeline.evaluation.confidence import Z


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / F + 1)^3 between rows (N, F) and (M, F), float64 (N, M)."""
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def block_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased squared MMD of two blocks of n rows (n, F), n >= 2: a float64 scalar that may be below 0."""
    n = len(x)
    if n != len(y) or n < 2:
        raise ValueError(f"kid: got blocks of {n} and {len(y)} rows, expected two of one size, at least 2")
    within = sum((k.sum() - k.diagonal().sum()) / (n * (n - 1)) for k in (kernel(x, x), kernel(y, y)))
    return within - 2 * kernel(x, y).mean()


def kid_sums(values: Tensor) -> Tensor:
    """(3,) count, sum and sum of squares of block values: what shards add."""
    values = values.double()
    return torch.stack(
        [torch.tensor(float(len(values)), dtype=torch.float64), values.sum(), values.square().sum()]
    )


def kid(sums: Tensor) -> dict[str, float | None]:
    """Mean over blocks with its 95 % interval (normal, None for a single block)."""
    count, total, squares = (float(value) for value in sums)
    mean = total / count
    low = high = None
    if count > 1:
        half = Z * math.sqrt(max(0.0, (squares - count * mean * mean) / (count - 1)) / count)
        low, high = mean - half, mean + half
    return {"value": mean, "blocks": int(count), "low": low, "high": high}
