"""Kernel distance, precision and recall, drift and leakage against independent formulas, and in shards."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from pipeline.evaluation.manifold import Manifold
from pipeline.evaluation.metrics.exchange_density import density
from pipeline.evaluation.metrics.kid import block_mmd, mean_mmd
from pipeline.evaluation.metrics.leakage import leaked
from pipeline.evaluation.metrics.paired_drift import drift_sums, mean_drift
from pipeline.evaluation.metrics.precision_recall import coverage
from pipeline.evaluation.partials import below, blocks, merge, moments_of_values, scatter


def features(n: int, seed: int, size: int = 6, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_kernel_distance_is_the_unbiased_mmd_of_a_cubic_kernel(shift: float) -> None:
    x, y = features(30, 0), features(30, 1, shift=shift)

    def k(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
        return polynomial_kernel(a.numpy(), b.numpy(), degree=3, gamma=1 / x.shape[1], coef0=1)

    def off_diagonal(values: np.ndarray) -> float:
        return float((values.sum() - np.trace(values)) / (30 * 29))

    wanted = off_diagonal(k(x, x)) + off_diagonal(k(y, y)) - 2 * k(x, y).mean()
    assert float(block_mmd(x, y)) == pytest.approx(wanted, rel=1e-10)


def test_kernel_distance_is_zero_on_average_for_one_distribution() -> None:
    values = torch.stack([block_mmd(features(20, seed), features(20, 1000 + seed)) for seed in range(200)])
    found = mean_mmd(moments_of_values(values))
    assert found["low"] is not None and found["low"] < 0 < found["high"] and found["blocks"] == 200
    assert found["value"] == pytest.approx(values.mean().item())
    half = 1.971957 * values.std().item() / np.sqrt(200)
    assert (found["low"], found["high"]) == pytest.approx(
        (found["value"] - half, found["value"] + half), rel=1e-5
    )


def test_a_single_block_has_no_interval_and_blocks_must_match() -> None:
    assert mean_mmd(moments_of_values(torch.tensor([0.3])))["low"] is None
    for n, m in ((1, 1), (4, 5)):
        with pytest.raises(ValueError, match="expected two of one size"):
            block_mmd(features(n, 0), features(m, 1))


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_nearest_neighbours(k: int) -> None:
    drawn, real = features(60, 0), features(80, 1, shift=0.8)

    def share(rows: np.ndarray, by: np.ndarray) -> float:
        # the nearest is the row itself
        radius = NearestNeighbors(n_neighbors=k + 1).fit(by).kneighbors(by)[0][:, -1]
        distance = np.linalg.norm(rows[:, None] - by[None], axis=2)
        return float((distance <= radius).any(axis=1).mean())

    found = coverage(drawn, real, k)
    assert (
        found["precision"].value == pytest.approx(share(drawn.numpy(), real.numpy()))
        and found["precision"].n == 60
    )
    assert (
        found["recall"].value == pytest.approx(share(real.numpy(), drawn.numpy())) and found["recall"].n == 80
    )
    assert 0 < found["precision"].value < 1


def test_precision_and_recall_of_a_set_with_itself_and_with_one_far_away() -> None:
    rows = features(20, 0)
    assert {share.value for share in coverage(rows, rows, 3).values()} == {1.0}
    assert {share.value for share in coverage(rows, rows + 100, 3).values()} == {0.0}
    with pytest.raises(ValueError, match="expected more than manifold_k"):
        Manifold.of(rows[:3], 3)


def test_one_outlier_vouches_for_what_is_near_it_in_precision_and_not_in_density() -> None:
    real = torch.cat([features(100, 0), features(1, 1, shift=30.0)])  # whose third neighbour is far away
    strange = features(50, 2, shift=15.0)
    assert coverage(strange, real, 3)["precision"].value == 1.0
    assert density(Manifold.of(real).balls_around(strange).tolist(), 3)["value"] == pytest.approx(1 / 3)
    usual = density(Manifold.of(real).balls_around(features(200, 3)).tolist(), 3)
    assert 0.7 < usual["value"] < 1.7 and usual["low"] < usual["value"]
    with pytest.raises(ValueError, match="got no image"):
        density([], 3)


def test_half_the_modes_cost_recall_and_not_precision() -> None:
    modes = torch.cat([features(50, 0, shift=-20), features(50, 1, shift=20)])
    found = coverage(features(50, 2, shift=20), modes, 3)
    assert found["precision"].value > 0.6 and found["recall"].value < 0.55


def test_drift_is_the_mean_distance_of_pairs() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2])
    first, second = features(5, 0), features(5, 1)
    found = mean_drift(drift_sums(labels, first, second), [0, 2])
    distance = np.linalg.norm(first.numpy() - second.numpy(), axis=1)
    assert found["per_class"] == pytest.approx({"0": distance[:3].mean(), "2": distance[3:].mean()})
    assert found["mean"] == pytest.approx((distance[:3].mean() + distance[3:].mean()) / 2) and found["n"] == 5
    still = mean_drift(drift_sums(labels, second, second), [0, 2])
    assert still["mean"] == 0 and still["relative"] == 0 and still["unpaired"] == found["unpaired"]


def test_leakage_counts_the_forgotten_class_under_every_other_label() -> None:
    found = leaked([0, 0, 2, 2, 1], [0, 1, 1, 1, 1], [1, 0, 3, 3], [1])
    # label 1 itself does not count
    assert (found["other_labels"]["value"], found["other_labels"]["n"]) == (0.75, 4)
    assert (
        found["worst_label"] == "2"
        and found["per_label"]["2"]["value"] == 1.0
        and found["per_label"]["0"]["value"] == 0.5
    )
    assert (found["null_label"]["value"], found["null_label"]["n"]) == (0.25, 4)
    assert leaked([0], [0], [], [1])["null_label"] is None


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_blocks_are_the_same_however_many_share_them(world_size: int) -> None:
    found = sorted(block for rank in range(world_size) for block in blocks(23, 4, rank, world_size))
    assert found == list(blocks(23, 4, 0, 1)) and [position for block in found for position in block] == list(
        range(23)
    )


def test_sums_add_by_name_and_rows_find_their_places() -> None:
    parts = [
        {"n": torch.tensor(2), "rows": scatter(3, [0, 2], torch.tensor([[1.0], [3.0]]))},
        {"rows": scatter(3, [1], torch.tensor([[2.0]]))},
    ]
    whole = merge(parts)
    assert whole["n"] == 2 and whole["rows"].flatten().tolist() == [1, 2, 3]
    assert below({"a/b/c": torch.tensor(1), "ab/c": torch.tensor(2)}, "a") == {"b/c": torch.tensor(1)}
