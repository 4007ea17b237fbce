"""What a trial is judged by: the settled measure, objectives, the ranking, the front."""

from typing import Any

import pytest

from pipeline.config import UnlearnConfig, load
from pipeline.errors import InputError
from pipeline.sweep import scores

BASE = load(UnlearnConfig, "jobs/configs/quickstart.yaml", ["storage=/nowhere", "optim.max_steps=40"])


def checks(*bounds: float) -> list[dict[str, Any]]:
    return [{"step": 2 * index, "forget_fraction/high": bound} for index, bound in enumerate(bounds)]


def test_one_good_draw_is_not_settled() -> None:
    assert scores.held(checks(1.0, 0.02), 4) == 1.0  # the window still reaches back to the base model
    assert scores.held(checks(1.0, 0.02, 0.03, 0.02), 4) == 0.03
    assert scores.held(checks(1.0, 0.02, 0.30, 0.02, 0.02), 4) == 0.30
    assert (
        scores.held([{"step": 0, "membership_auc/high": 0.9}, {"step": 8, "membership_auc/high": 0.5}], 4)
        == 0.5
    )


def outcome(settled: int | None, **after: Any) -> dict[str, Any]:
    return {"settled_step": settled, "after": after, "timing": {"step_seconds": 2.0}, "world_size": 2}


def test_objectives_read_what_was_measured() -> None:
    measured = {
        "forget_fraction": {"value": 0.1, "high": 0.2},
        "retain_accuracy": {"mean": 0.9, "min": 0.8},
        "fid": {"judge": 3.0},
    }
    names = ["settled_step", "forget_fraction/high", "retain_accuracy/min", "step_seconds", "fid/judge"]
    assert scores.values_of(outcome(6, **measured), BASE, names) == [6, 0.2, 0.8, 2.0, 3.0]
    never = scores.values_of(outcome(None, **measured), BASE, ["settled_step"])
    assert never == [40 + 16]  # worse than any trial that settled
    assert scores.values_of(outcome(6, forget_fraction=None), BASE, ["forget_fraction"]) is None


@pytest.mark.parametrize(
    ("names", "overrides", "message"),
    [
        (["accuracy"], [], "no trial reports 'accuracy'.*trials report settled_step"),
        (["retain_accuracy/mena"], [], "did you mean retain_accuracy/mean"),
        (["gpu_seconds"], [], "gpus_per_worker is 0; step_seconds"),
        (["membership_auc"], [], "the request names classes"),
        (["forget_fraction"], ["request.sample_ids=/x", "request.exchange={}"], "the request names samples"),
        (["exchange_fraction"], ["request.exchange={}"], "no exchange class"),
        (["settled_step", "settled_step"], [], "each once"),
    ],
)
def test_an_objective_that_no_trial_reports_is_refused(
    names: list[str], overrides: list[str], message: str
) -> None:
    values = ["request.exchange={}" if o == "request.exchange={}" else o for o in overrides]
    base = BASE.model_copy(update={"request": BASE.request.model_copy(update=_request(values))})
    with pytest.raises(InputError, match=message):
        scores.check_objectives(names, base)


def _request(overrides: list[str]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for override in overrides:
        changed |= {"sample_ids": "/x", "classes": []} if "sample_ids" in override else {"exchange": {}}
    return changed


def row(
    number: int, values: list[float] | None, *, gate: bool = True, status: str = scores.FINISHED
) -> dict[str, Any]:
    return {"number": number, "values": values, "gate_passed": gate, "status": status}


def test_the_gate_comes_before_the_objectives() -> None:
    rows = [
        row(0, [4, 0.9]),
        row(1, [2, 0.5], gate=False),
        row(2, [4, 0.95]),
        row(3, [6, 1.0]),
        row(4, None, status=scores.FAILED),
    ]
    rows.append(row(5, [1, 1.0], status=scores.STOPPED))
    assert [r["number"] for r in scores.ranked(rows, ["settled_step", "retain_accuracy/min"])] == [2, 0, 3, 1]


def test_the_front_holds_who_is_beaten_by_nobody() -> None:
    rows = [
        row(0, [4, 0.9]),
        row(1, [2, 0.5]),
        row(2, [4, 0.9]),
        row(3, [6, 0.9]),
        row(4, [8, 1.0]),
        row(5, None, status=scores.FAILED),
    ]
    assert scores.front(rows, ["settled_step", "retain_accuracy/min"]) == [0, 1, 2, 4]
