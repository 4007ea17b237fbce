"""A set of features as k-nearest-neighbour balls (Kynkaanniemi et al. 2019), and which images lie in them."""

from dataclasses import dataclass

from torch import Tensor, cdist

K = 3  # the neighbour that sets a ball's radius, as in the paper


@dataclass(frozen=True, kw_only=True)
class Manifold:
    """A set of feature `rows` (M, F), each with the `radii` (M,) of a ball as large as the distance to its
    k-th nearest other row."""

    rows: Tensor
    radii: Tensor

    @staticmethod
    def of(rows: Tensor, k: int = K) -> "Manifold":
        """Raises `ValueError` where there are not more than `k` rows."""
        if len(rows) <= k:
            raise ValueError(f"manifold: got {len(rows)} rows, expected more than manifold_k ({k})")
        _require_numbers(rows)
        return Manifold(rows=rows.double(), radii=_distances(rows, rows).kthvalue(k + 1, dim=1).values)

    def balls_around(self, rows: Tensor) -> Tensor:
        """In how many balls each of `rows` (N, F) lies, (N,) of int64."""
        _require_numbers(rows)
        return (_distances(rows, self.rows) <= self.radii.unsqueeze(0)).sum(dim=1)


def _require_numbers(rows: Tensor) -> None:
    """Raise `ValueError` for features that are no numbers: they would count as lying nowhere."""
    if bad := int((~rows.isfinite()).any(dim=1).sum()):
        raise ValueError(f"manifold: got {bad} of {len(rows)} rows that are not finite, expected numbers")


def _distances(first: Tensor, second: Tensor) -> Tensor:
    return cdist(first.double(), second.double(), compute_mode="donot_use_mm_for_euclid_dist")
