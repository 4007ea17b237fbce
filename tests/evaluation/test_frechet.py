"""Frechet distance against scipy's matrix root, and sums that merge exactly."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from pipeline.evaluation.feature_statistics import Moments, frechet_distance, merged
from pipeline.evaluation.manifold import Manifold
from pipeline.evaluation.metrics.exchange_density import density


def features(n: int, seed: int, size: int = 6) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=g, dtype=torch.float64)
    return torch.randn(n, size, generator=g, dtype=torch.float64) @ mix + torch.randn(
        size, generator=g, dtype=torch.float64
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_distance_is_that_of_the_matrix_root(seed: int) -> None:
    a, b = features(200, seed), features(300, seed + 10)
    m1, m2 = a.numpy().mean(0), b.numpy().mean(0)
    c1, c2 = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = scipy.linalg.sqrtm(c1 @ c2).real
    wanted = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * root)
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(wanted, rel=1e-8)
    assert frechet_distance(Moments.of(b), Moments.of(a)) == pytest.approx(wanted, rel=1e-8)


def test_distance_of_a_set_to_itself_is_zero_and_of_a_shifted_one_the_shift() -> None:
    a = features(100, 0)
    assert frechet_distance(Moments.of(a), Moments.of(a)) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(Moments.of(a), Moments.of(a + 2)) == pytest.approx(4 * a.shape[1], rel=1e-6)


def test_fewer_rows_than_features_still_have_a_distance() -> None:
    value = frechet_distance(Moments.of(features(4, 0)), Moments.of(features(5, 1)))
    assert np.isfinite(value) and value > 0
    with pytest.raises(ValueError, match="got 1 feature rows"):
        frechet_distance(Moments.of(features(1, 0)), Moments.of(features(5, 1)))


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_moments_of_parts_are_those_of_the_whole(parts: int) -> None:
    rows, reference = features(101, 3), Moments.of(features(80, 4))
    whole = Moments.of(rows)
    split = merged([Moments.of(rows[:0]), *(Moments.of(rows[index::parts]) for index in range(parts))])
    assert split.n == whole.n == 101
    torch.testing.assert_close(split.total, whole.total, rtol=1e-12, atol=1e-12)
    assert frechet_distance(split, reference) == pytest.approx(frechet_distance(whole, reference), abs=1e-10)
    mean, covariance = split.gaussian()
    np.testing.assert_allclose(mean.numpy(), rows.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance.numpy(), np.cov(rows.numpy().T), rtol=1e-9)


def test_float32_features_are_summed_in_float64() -> None:
    rows = torch.full((1000, 2), 1e4) + torch.arange(1000).float()[:, None] * 1e-2
    _, covariance = Moments.of(rows).gaussian()
    np.testing.assert_allclose(covariance.numpy(), np.cov(rows.double().numpy().T), rtol=1e-5)


def test_features_that_are_no_numbers_have_no_distance() -> None:
    good = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    for value in (math.nan, math.inf):
        bad = good.clone()
        bad[3, 1] = value
        assert math.isnan(frechet_distance(Moments.of(bad), Moments.of(good)))
        with pytest.raises(ValueError, match="1 of 20 rows that are not finite"):
            Manifold.of(bad)
        with pytest.raises(ValueError, match="1 of 20 rows that are not finite"):
            Manifold.of(good).balls_around(bad)


def test_equal_counts_still_leave_doubt() -> None:
    none = density([0] * 20, 3)
    assert none["value"] == none["low"] == 0.0 and 0.02 < none["high"] < 0.05
