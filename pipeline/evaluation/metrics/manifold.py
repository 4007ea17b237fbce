"""Improved precision and recall (Kynkaanniemi et al. 2019): which images lie within the other set's
k-nearest-neighbour balls."""

from dataclasses import dataclass

from torch import Tensor, cdist

from pipeline.evaluation.confidence import Proportion, proportion

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
            raise ValueError(
                f"precision and recall: got {len(rows)} rows, expected more than manifold_k ({k})"
            )
        return Manifold(rows=rows.double(), radii=_distances(rows, rows).kthvalue(k + 1, dim=1).values)

    def balls_around(self, rows: Tensor) -> Tensor:
        """In how many balls each of `rows` (N, F) lies, (N,) of int64."""
        return (_distances(rows, self.rows) <= self.radii.unsqueeze(0)).sum(dim=1)


def precision_recall(drawn: Tensor, real: Tensor, k: int) -> dict[str, Proportion]:
    """Precision: share of the `drawn` features (N, F) that look real. Recall: share of the `real` ones (M, F)
    that the model could draw."""
    return {"precision": covered(drawn, Manifold.of(real, k)), "recall": covered(real, Manifold.of(drawn, k))}


def covered(rows: Tensor, by: Manifold) -> Proportion:
    """Share of `rows` (N, F) that lie within some ball of `by` (eq. 1 and 2)."""
    return proportion(int((by.balls_around(rows) > 0).sum()), len(rows))


def _distances(first: Tensor, second: Tensor) -> Tensor:
    return cdist(first.double(), second.double(), compute_mode="donot_use_mm_for_euclid_dist")
