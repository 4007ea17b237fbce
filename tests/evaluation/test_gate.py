"""The gate: what is measured and good passes, nothing else."""

from copy import deepcopy
from typing import Any

import pytest

from pipeline.config import Gate, UnlearnConfig, parse
from pipeline.errors import InputError
from pipeline.evaluation.gate import exchange_fidelity, exchange_fidelity_warning, judge_gate, judge_warning

GOOD: dict[str, Any] = {
    "settled_step": 8,
    "steps": 24,
    "before": {
        "forget_fraction": {"value": 1.0},
        "retain_accuracy": {"mean": 1.0, "min": 1.0, "per_class": {}},
        "fid": {"judge": 2.0},
    },
    "after": {
        "forget_fraction": {"value": 0.01, "n": 500, "low": 0.0, "high": 0.02},
        "retain_accuracy": {"mean": 0.99, "min": 0.95, "per_class": {"0": 1.0, "3": 0.95, "7": 1.0}},
        "fid": {"judge": 2.5},
    },
}


def outcome(**after: Any) -> dict[str, Any]:
    changed = deepcopy(GOOD)
    changed["after"] |= after
    return changed


def failed(gate: dict[str, Any]) -> list[str]:
    assert gate["passed"] == all(check["passed"] for check in gate["checks"])
    assert all(set(check) >= {"name", "value", "bound", "passed"} for check in gate["checks"])
    return [check["name"] for check in gate["checks"] if not check["passed"]]


def test_a_good_run_passes() -> None:
    assert failed(judge_gate(Gate(), GOOD, 0.98)) == []
    assert failed(judge_gate(Gate(max_fid_increase=1.0), GOOD, 0.98)) == []


def test_a_damaged_class_is_refused_and_named() -> None:
    damaged = {"mean": 0.98, "min": 0.4, "per_class": {"0": 1.0, "3": 0.4, "7": 1.0}}
    gate = judge_gate(Gate(), outcome(retain_accuracy=damaged), 0.98)
    assert failed(gate) == ["retain_accuracy/min"]
    (check,) = [c for c in gate["checks"] if not c["passed"]]
    assert (check["value"], check["bound"], check["class"]) == (0.4, 0.90, "3")


def precise(own: float, forgotten: float, called: float = 0.99) -> dict[str, Any]:
    """GOOD with what the exchange label reached before and the forgotten one does after."""
    made = outcome(
        exchange_density={
            "forgotten": {"value": forgotten, "low": forgotten - 0.05},
            "own": {"value": 0.9, "low": 0.8},
        },
        exchange_fraction={"value": called, "low": called - 0.02},
    )
    made["before"]["exchange_density"] = {
        "forgotten": {"value": 0.0, "low": 0.0},
        "own": {"value": own, "low": own},
    }
    return made


def test_images_that_look_like_nothing_are_warned_of_and_refused_on_request() -> None:
    stripes = precise(own=0.8, forgotten=0.02)
    assert exchange_fidelity(stripes["before"], stripes["after"]) == pytest.approx(0.025)
    warning = exchange_fidelity_warning(stripes["before"], stripes["after"])
    assert (
        warning is not None
        and "99.0% is predicted so" in warning
        and "with density 0.02, 0.80 around the base's samples" in warning
    )
    assert "\n" not in warning
    assert failed(judge_gate(Gate(), stripes, 0.98)) == []
    assert failed(judge_gate(Gate(min_exchange_fidelity=0.5), stripes, 0.98)) == ["exchange_fidelity"]
    trucks = precise(own=0.8, forgotten=0.6)
    assert exchange_fidelity_warning(trucks["before"], trucks["after"]) is None
    assert failed(judge_gate(Gate(min_exchange_fidelity=0.5), trucks, 0.98)) == []
    assert exchange_fidelity(trucks["before"], trucks["after"], "low") == pytest.approx(0.55 / 0.8)
    for unknown in (GOOD, precise(own=0.0, forgotten=0.0)):  # not measured, or nothing to hold it against
        assert (
            exchange_fidelity(unknown["before"], unknown["after"])
            is exchange_fidelity_warning(unknown["before"], unknown["after"])
            is None
        )
        assert failed(judge_gate(Gate(min_exchange_fidelity=0.5), unknown, 0.98)) == ["exchange_fidelity"]


def test_nor_does_one_odd_image_with_a_huge_ball_vouch_for_what_nobody_calls_so() -> None:
    frogs = precise(own=1.2, forgotten=0.6, called=0.0)
    assert exchange_fidelity(frogs["before"], frogs["after"]) == 0.0 and exchange_fidelity(
        frogs["before"], frogs["after"], "low"
    ) == pytest.approx(-0.02)
    assert exchange_fidelity_warning(frogs["before"], frogs["after"]) is not None
    assert failed(judge_gate(Gate(min_exchange_fidelity=0.4), frogs, 0.98)) == ["exchange_fidelity"]


@pytest.mark.parametrize(
    ("changed", "settings", "accuracy", "names"),
    [
        ({"forget_fraction": {"value": 0.06}}, {}, 0.98, ["forget_fraction"]),
        (
            {"retain_accuracy": {"mean": 0.96, "min": 0.95, "per_class": {"0": 0.95}}},
            {},
            0.98,
            ["retain_accuracy/mean"],
        ),
        ({}, {}, 0.80, ["judge_heldout_accuracy"]),
        ({}, {"max_fid_increase": 0.4}, 0.98, ["fid_increase/judge"]),
        ({}, {"max_recall_excess": 0.05}, 0.98, ["recall_excess"]),
        (
            {},
            {"max_forget_fraction": 0.005, "min_retain_accuracy": 0.995},
            0.98,
            ["forget_fraction", "retain_accuracy/mean"],
        ),
    ],
)
def test_each_bound_refuses(
    changed: dict[str, Any], settings: dict[str, Any], accuracy: float, names: list[str]
) -> None:
    assert failed(judge_gate(Gate(**settings), outcome(**changed), accuracy)) == names


def test_a_judge_that_nobody_tried_is_refused_unless_told_otherwise() -> None:
    assert failed(judge_gate(Gate(), GOOD, None)) == ["judge_heldout_accuracy"]
    for accuracy in (None, 0.5):
        assert failed(judge_gate(Gate(min_judge_accuracy=None), GOOD, accuracy)) == []
    assert failed(judge_gate(Gate(min_judge_accuracy=0.7), GOOD, 0.8)) == []


@pytest.mark.parametrize(
    ("accuracy", "said"), [(0.8, "right on 80.0% of held-out images"), (None, "never tried"), (0.95, None)]
)
def test_a_weak_judge_is_warned_of(accuracy: float | None, said: str | None) -> None:
    warning = judge_warning(accuracy)
    assert warning is None if said is None else said in (warning or "")


@pytest.mark.parametrize(
    "bound",
    [
        "max_forget_fraction",
        "min_retain_accuracy",
        "min_class_accuracy",
        "max_membership_auc",
        "min_judge_accuracy",
    ],
)
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_bound_outside_zero_to_one_is_no_bound(bound: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"gate\.{bound}: got {value}"):
        parse(UnlearnConfig, {"gate": {bound: value}})


def test_a_run_that_did_not_settle_is_refused() -> None:
    assert failed(judge_gate(Gate(), {**GOOD, "settled_step": None}, 0.98)) == ["settled", "held_steps"]


@pytest.mark.parametrize(
    ("steps", "names"), [(9, ["held_steps"]), (15, ["held_steps"]), (16, []), (None, ["held_steps"])]
)
def test_a_deliberately_small_hold_is_refused(steps: int | None, names: list[str]) -> None:
    assert failed(judge_gate(Gate(), {**GOOD, "steps": steps}, 0.98)) == names
    assert failed(judge_gate(Gate(min_patience_steps=1), {**GOOD, "steps": 9}, 0.98)) == []


def test_what_was_not_measured_does_not_pass() -> None:
    nothing = {"mean": None, "min": None, "per_class": {}}
    gate = judge_gate(Gate(), outcome(forget_fraction={"value": None}, retain_accuracy=nothing), 0.98)
    assert failed(gate) == ["forget_fraction", "retain_accuracy/mean", "retain_accuracy/min"]


def test_a_bound_that_is_met_exactly_passes() -> None:
    exactly = outcome(
        forget_fraction={"value": 0.05}, retain_accuracy={"mean": 0.97, "min": 0.90, "per_class": {"2": 0.90}}
    )
    assert failed(judge_gate(Gate(), exactly, 0.90)) == []


def attacked(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """A run that was asked to forget named samples."""
    changed = outcome(forget_fraction=None, membership=after)
    changed["before"] |= {"forget_fraction": None, "membership": before}
    return changed


def test_named_samples_pass_by_the_attack_alone() -> None:
    memorised = {"auc": 0.9, "low": 0.85, "memorised": True}
    assert failed(judge_gate(Gate(max_membership_auc=0.6), attacked(memorised, {"auc": 0.55}), 0.98)) == []
    assert failed(judge_gate(Gate(max_membership_auc=0.6), attacked(memorised, {"auc": 0.65}), 0.98)) == [
        "membership_auc"
    ]
    assert failed(judge_gate(Gate(max_membership_auc=0.6), attacked(memorised, {"auc": 0.35}), 0.98)) == [
        "membership_auc/reversed"
    ]


def test_what_was_never_memorised_cannot_be_forgotten() -> None:
    never = {"auc": 0.53, "low": 0.45, "memorised": False}
    assert failed(judge_gate(Gate(max_membership_auc=0.6), attacked(never, {"auc": 0.5}), 0.98)) == [
        "memorised_before"
    ]
    accepting = Gate(max_membership_auc=0.6, require_memorised=False)
    assert failed(judge_gate(accepting, attacked(never, {"auc": 0.5}), 0.98)) == []


def test_a_judge_that_the_model_was_trained_against_proves_nothing() -> None:
    assert failed(judge_gate(Gate(), GOOD, 0.98, trained_against=True)) == ["judge_trained_against"]
    assert failed(judge_gate(Gate(accept_trained_judge=True), GOOD, 0.98, trained_against=True)) == []
