"""Shares of a model without labels: counts, overlap with the mixture before, drift, and the gate on it."""

import pytest

from pipeline.config import Gate
from pipeline.evaluation.confidence import Proportion
from pipeline.evaluation.gate import judge_gate
from pipeline.evaluation.metrics.class_shares import drift, overlap, renormalised, shares

BEFORE = {"per_class": {"0": 0.4, "1": 0.2, "2": 0.1, "3": 0.3}, "n": 1000, "chance": 0.25}


def test_predictions_become_shares_with_their_chance() -> None:
    assert shares([0, 0, 3, 1, 0], 4) == {
        "per_class": {"0": 0.6, "1": 0.2, "2": 0.0, "3": 0.2},
        "n": 5,
        "chance": 0.25,
    }


def test_overlap_is_whole_for_the_same_mixture_and_falls_with_what_moved() -> None:
    def of(*counts: int) -> Proportion | None:
        return overlap(shares([c for c, n in enumerate(counts) for _ in range(n)], 4), BEFORE, [1])

    assert renormalised(BEFORE, [1]) == pytest.approx({"0": 0.5, "2": 0.125, "3": 0.375})
    same, more_ones, moved = of(500, 0, 125, 375), of(500, 4000, 125, 375), of(300, 0, 325, 375)
    # the forgotten class is none of its business
    assert same is not None and same.value == 1.0 and more_ones == same
    assert moved is not None and moved.value == pytest.approx(0.8) and moved.n == 1000
    assert of(0, 7, 0, 0) is None


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
