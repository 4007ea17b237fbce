"""Shares of a model without labels: counts, overlap with the mixture before, drift, and the gate on it."""

import pytest

from pipeline.config import Gate
from pipeline.evaluation.gate import judge_gate
from pipeline.evaluation.metrics.class_shares import Shares, drift, renormalised, shares_of

BEFORE = {"per_class": {"0": 0.4, "1": 0.2, "2": 0.1, "3": 0.3}, "n": 1000, "chance": 0.25}


def test_counts_become_shares_with_their_chance() -> None:
    shares = shares_of([0, 0, 3, 1, 0], 4)
    assert shares.counts == {0: 3, 1: 1, 2: 0, 3: 1} and shares.n == 5
    assert shares.to_dict() == {"per_class": {"0": 0.6, "1": 0.2, "2": 0.0, "3": 0.2}, "n": 5, "chance": 0.25}
    forgotten = shares.of([1])
    assert (forgotten.value, forgotten.n) == (0.2, 5) and 0.0 < forgotten.low < 0.2 < forgotten.high


def test_overlap_is_whole_for_the_same_mixture_and_falls_with_what_moved() -> None:
    assert renormalised(BEFORE, [1]) == pytest.approx({"0": 0.5, "2": 0.125, "3": 0.375})
    same = Shares(counts={0: 500, 1: 0, 2: 125, 3: 375}).overlap(BEFORE, [1])
    more_ones = Shares(counts={0: 500, 1: 4000, 2: 125, 3: 375}).overlap(BEFORE, [1])
    moved = Shares(counts={0: 300, 1: 0, 2: 325, 3: 375}).overlap(BEFORE, [1])
    # the forgotten class is none of its business
    assert same is not None and same.value == 1.0 and more_ones == same
    assert moved is not None and moved.value == pytest.approx(0.8) and moved.n == 1000
    assert Shares(counts={0: 0, 1: 7, 2: 0, 3: 0}).overlap(BEFORE, [1]) is None


def test_drift_is_from_the_renormalised_share() -> None:
    after = {"per_class": {"0": 0.46, "1": 0.01, "2": 0.13, "3": 0.40}}
    assert drift(BEFORE, after, [1]) == pytest.approx({"0": -0.04, "2": 0.005, "3": 0.025})


@pytest.mark.parametrize(("bound", "passed"), [(0.03, False), (0.05, True)])
def test_the_gate_bounds_the_class_that_moved_most(bound: float, passed: bool) -> None:
    nothing = {"mean": None, "min": None, "neighbours": None, "per_class": {}}
    after = {"per_class": {"0": 0.46, "1": 0.01, "2": 0.13, "3": 0.40}, "n": 1000, "chance": 0.25}
    side = {"retain_accuracy": nothing, "fid": {}}
    outcome = {
        "before": {**side, "forget_fraction": {"value": 0.2}, "class_shares": BEFORE},
        "after": {**side, "forget_fraction": {"value": 0.01}, "class_shares": after},
        "settled_step": 4,
        "steps": 20,
    }
    found = judge_gate(Gate(max_forget_fraction=0.02, max_share_drift=bound), outcome, 0.97, [1])
    (check,) = [check for check in found["checks"] if check["name"] == "class_share_drift"]
    assert (check["class"], check["passed"], found["passed"]) == ("0", passed, passed)
    assert check["value"] == pytest.approx(0.04)
    assert not any(check["name"].startswith("retain_accuracy") for check in found["checks"])
