"""Shares with intervals, and the rule that says when forgetting is settled."""

import math

import pytest
import torch
from scipy.stats import binomtest

from pipeline.evaluation.confidence import Proportion, difference, mean_and_half, proportion
from pipeline.evaluation.stopping_rule import SettleRule


@pytest.mark.parametrize(
    ("hits", "n"), [(0, 20), (1, 20), (5, 200), (9, 200), (100, 200), (199, 200), (500, 500), (0, 1), (1, 1)]
)
def test_interval_is_wilsons(hits: int, n: int) -> None:
    wanted = binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
    got = proportion(hits, n)
    assert (got.value, got.n) == (hits / n, n)
    assert got.low == pytest.approx(wanted.low, abs=1e-12) and got.high == pytest.approx(
        wanted.high, abs=1e-12
    )
    assert 0 <= got.low <= got.value <= got.high <= 1
    assert got.to_dict() == {"value": got.value, "n": n, "low": got.low, "high": got.high}


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_a_share_of_nothing_is_no_measurement(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= hits <= n and n > 0"):
        proportion(hits, n)


def watched(
    checks: list[tuple[int, int]], *, n: int = 200, target: float = 0.05, hold: int = 8
) -> SettleRule:
    """A rule after checks of (step, hits of n)."""
    rule = SettleRule(target=target, patience_steps=hold)
    for step, hits in checks:
        rule.observe(step, proportion(hits, n))
    return rule


def test_settled_once_the_upper_bound_has_held() -> None:
    checks = [(2, 180), (4, 2), (6, 0), (8, 1), (10, 0)]
    assert watched(checks).settled_step is None and not watched(checks).done
    rule = watched([*checks, (12, 0)])
    assert (rule.first_crossing_step, rule.settled_step, rule.done) == (4, 4, True)


def test_a_rebound_starts_the_window_again() -> None:
    rule = watched([(2, 0), (4, 0), (6, 30), (8, 0), (10, 0), (12, 0), (14, 0)])
    assert (rule.first_crossing_step, rule.settled_step) == (2, None)
    rule.observe(16, proportion(0, 200))
    assert rule.settled_step == 8


def test_the_measured_share_crosses_before_its_upper_bound() -> None:
    assert proportion(8, 200).value < 0.05 < proportion(8, 200).high
    rule = watched([(step, 8) for step in range(2, 40, 2)])
    assert (rule.first_crossing_step, rule.settled_step) == (2, None)


def test_too_few_samples_never_settle() -> None:
    """Not one of 60 samples is still compatible with a share above 5 %."""
    rule = watched([(step, 0) for step in range(2, 40, 2)], n=60)
    assert (rule.first_crossing_step, rule.settled_step) == (2, None)


def test_the_hold_window_counts_steps_not_checks() -> None:
    assert watched([(step, 0) for step in range(1, 8)], hold=8).settled_step is None
    assert watched([(step, 0) for step in range(1, 10)], hold=8).settled_step == 1
    assert watched([(10, 0), (20, 0)], hold=10).settled_step == 10


def test_the_bound_itself_is_not_below() -> None:
    rule = SettleRule(target=0.05, patience_steps=1)
    for step in (1, 2, 3):
        rule.observe(step, Proportion(value=0.05, n=200, low=0.02, high=0.05))
    assert (rule.first_crossing_step, rule.settled_step) == (None, None)


def test_a_settled_run_that_rebounds_is_no_longer_settled() -> None:
    rule = watched([(step, 0) for step in range(1, 12)])
    assert rule.settled_step == 1
    rule.observe(12, proportion(40, 200))
    assert rule.settled_step is None


def test_the_difference_of_two_shares_has_the_published_interval() -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table II, (a) 56/70 - 48/80 by method 10."""
    got = difference(proportion(56, 70).to_dict(), proportion(48, 80).to_dict())
    assert [round(got[key], 4) for key in ("value", "low", "high")] == [0.2, 0.0524, 0.3339]


def test_a_mean_of_what_is_no_number_has_no_interval() -> None:
    """A maximum with 0 would give one of width 0."""
    mean, half = mean_and_half(torch.tensor([3.0, math.nan, 1.0]))
    assert math.isnan(mean) and half is not None and math.isnan(half)
