"""Feature statistics as exactly mergeable float64 sums, and the Frechet distance between two of them
(Heusel et al. 2017). N rows, F features."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Count, sum (F,) and sum of outer products (F, F) of feature rows, float64: merging is addition."""

    n: int
    total: Tensor
    outer: Tensor

    @staticmethod
    def of(features: Tensor) -> "Moments":
        """The moments of rows (N, F)."""
        rows = features.detach().cpu().to(torch.float64)
        return Moments(n=len(rows), total=rows.sum(0), outer=rows.T @ rows)

    @staticmethod
    def unpacked(packed: Tensor) -> "Moments":
        features = math.isqrt(len(packed))  # 1 + F + F^2 numbers lie between F^2 and (F + 1)^2
        total, outer = packed[1 : 1 + features], packed[1 + features :]
        return Moments(n=int(packed[0].item()), total=total, outer=outer.reshape(features, features))

    def packed(self) -> Tensor:
        """(1 + F + F^2,): what shards add."""
        return torch.cat([torch.tensor([self.n], dtype=torch.float64), self.total, self.outer.reshape(-1)])

    def merge(self, other: "Moments") -> "Moments":
        return Moments(n=self.n + other.n, total=self.total + other.total, outer=self.outer + other.outer)

    def gaussian(self) -> tuple[Tensor, Tensor]:
        """Mean (F,) and unbiased covariance (F, F); needs n >= 2."""
        if self.n < 2:
            raise ValueError(f"frechet: got {self.n} feature rows, expected at least 2")
        mean = self.total / self.n
        return mean, (self.outer - self.n * torch.outer(mean, mean)) / (self.n - 1)


def merged(parts: Sequence[Moments]) -> Moments:
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.merge(part)
    return whole


def frechet_distance(first: Moments, second: Moments) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the trace of the root by eigenvalues of C1^(1/2) C2
    C1^(1/2). NaN where a feature is no finite number."""
    if not all(part.outer.isfinite().all() for part in (first, second)):
        return math.nan
    m1, c1 = first.gaussian()
    m2, c2 = second.gaussian()
    values, vectors = torch.linalg.eigh(c1)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ c2 @ root).clamp(min=0).sqrt().sum()
    return max(0.0, ((m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * cross).item())
