"""Suggestions: Optuna's, a function of the seed and the results; the base first; what has ended is known."""

import random
from typing import Any

import pytest
from sweeps import ROOT

from pipeline.config import SweepConfig, load
from pipeline.sweep.space import coordinates_of, distributions, importance, settings_at, study_of

FIRST = {"method.penalty": 0.01, "method.surgery_every": 2, "trainable": "all", "optim.ema": 0.7}
SPACE = (
    "space={method.penalty: {loguniform: [1.0e-4, 1], zero: true},"
    " method.surgery_every: {choice: [1, 5, 2, 4, 3]}, trainable: {choice: [labels, all]},"
    " optim.ema: {uniform: [0.1, 0.9]}}"
)


def config(algorithm: str = "tpe", objectives: int = 2, concurrency: int = 1, seed: int = 0) -> SweepConfig:
    names = ["settled_step", "retain_accuracy/mean"][:objectives]
    search = {"algorithm": algorithm, "objectives": names, "concurrency": concurrency}
    search |= {"startup_trials": 4} if algorithm == "tpe" else {}
    path = str(ROOT / "jobs/configs/sweep_quickstart.yaml")
    return load(SweepConfig, path, ["storage=/nowhere", SPACE, f"search={search}", f"seed={seed}"])


def values(settings: dict[str, Any], objectives: int = 2) -> list[float]:
    return [settings["method.surgery_every"] + settings["method.penalty"], settings["optim.ema"]][:objectives]


def suggested(these: SweepConfig, trials: int = 12, sign: int = 1) -> list[dict[str, Any]]:
    """One trial after the other."""
    study = study_of(these, [], [FIRST, {**FIRST, "method.penalty": 0.0}])
    points = []
    for _ in range(trials):
        trial = study.ask(fixed_distributions=distributions(these.space))
        points.append(settings_at(these.space, trial.params))
        measured = values(points[-1], len(these.search.objectives))
        study.tell(trial, [sign * value for value in measured])
    return points


@pytest.mark.parametrize(("algorithm", "objectives"), [("tpe", 1), ("tpe", 2), ("random", 1)])
def test_the_same_seed_gives_the_same_sequence_and_the_base_comes_first(
    algorithm: str, objectives: int
) -> None:
    points = suggested(config(algorithm, objectives))
    assert points[:2] == [FIRST, {**FIRST, "method.penalty": 0.0}]
    assert suggested(config(algorithm, objectives)) == points
    assert suggested(config(algorithm, objectives, seed=1))[2:] != points[2:]


def test_what_the_results_say_is_heard_by_tpe_only() -> None:
    assert suggested(config("random", 1)) == suggested(config("random", 1), sign=-1)
    assert suggested(config("tpe", 1)) != suggested(config("tpe", 1), sign=-1)


def test_every_point_lies_in_the_space_and_comes_back_from_its_coordinates() -> None:
    these = config("random")
    points = suggested(these, trials=60)
    penalties = [point["method.penalty"] for point in points]
    assert all(value == 0 or 1e-4 <= value <= 1 for value in penalties) and 2 <= penalties.count(0.0) <= 20
    assert {point["method.surgery_every"] for point in points} == {1, 2, 3, 4, 5}
    assert all(0.1 <= point["optim.ema"] <= 0.9 for point in points)
    assert [settings_at(these.space, coordinates_of(these.space, point)) for point in points] == points


def test_a_sweep_that_goes_on_knows_what_has_ended_and_does_not_repeat_itself() -> None:
    these = config("random")
    points = suggested(these, trials=8)
    rows = [{"settings": point, "values": values(point)} for point in points]
    rows[5]["values"] = None  # it broke
    study = study_of(these, rows, [FIRST])
    assert [trial.values for trial in study.trials[:8]] == [row["values"] for row in rows]
    further = [
        settings_at(these.space, study.ask(fixed_distributions=distributions(these.space)).params)
        for _ in range(8)
    ]
    assert further[0] == FIRST  # under way when it was interrupted
    assert not [point for point in further[1:] if point in points]


def test_importance_names_what_the_objective_depends_on() -> None:
    these, g = config("random"), random.Random(0)
    axes = distributions(these.space)
    study = study_of(these, [])
    points = [settings_at(these.space, study.ask(fixed_distributions=axes).params) for _ in range(25)]
    rows = [
        {"settings": p, "values": [float(p["method.surgery_every"]), p["optim.ema"] + 0.01 * g.random()]}
        for p in points
    ]
    first, second = (importance(study_of(these, rows), index, 0) for index in range(2))
    assert max(first, key=lambda key: first[key]) == "method.surgery_every"
    assert max(second, key=lambda key: second[key]) == "optim.ema"
    assert sum(first.values()) == pytest.approx(1)
    assert importance(study_of(these, rows[:3]), 0, 0) == {}
