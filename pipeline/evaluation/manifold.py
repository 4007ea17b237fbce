"""Improved precision and recall (Kynkaanniemi et al. 2019): which images lie within the other set's k-nearest-neighbour balls."""

from torch import Tensor, cdist

from pipeline.evaluation.proportion import Proportion, proportion


def radii(rows: Tensor, k: int) -> Tensor:
    """Distance of each row (N, F) to its k-th nearest other row, (N,)."""
    if len(rows) <= k:
        raise ValueError(f"precision and recall: got {len(rows)} rows, expected more than manifold_k ({k})")
    return cdist(rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist").kthvalue(k + 1, dim=1).values


def covered(rows: Tensor, by: Tensor, k: int) -> Proportion:
    """Share of `rows` (N, F) that lie within a ball around some row of `by` (M, F) (eq. 1 and 2)."""
    distance = cdist(rows.double(), by.double(), compute_mode="donot_use_mm_for_euclid_dist")  # (N, M)
    inside = (distance <= radii(by, k).unsqueeze(0)).any(dim=1)
    return proportion(int(inside.sum()), len(rows))


def precision_recall(drawn: Tensor, real: Tensor, k: int) -> dict[str, Proportion]:
    """Precision: drawn images that look real. Recall: real images that the model could draw."""
    return {"precision": covered(drawn, real, k), "recall": covered(real, drawn, k)}
