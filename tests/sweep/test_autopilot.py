"""The contest of `method.name: auto`: who takes part, who stands where, what the winner is measured by."""

from typing import Any

import pytest

from pipeline.config import UnlearnConfig, load
from pipeline.errors import InputError
from pipeline.sweep.autopilot import contestants, hold, limited, order, settled_on, standing

AUTO = load(UnlearnConfig, "jobs/configs/quickstart.yaml", ["storage=/nowhere", "method.name=auto", "method.penalty=0.5"])


def test_every_contestant_has_its_known_good_settings_and_the_runs_own_for_the_rest() -> None:
    found = contestants(AUTO)
    assert list(found) == ["exchange", "surgery", "uno_s", "esd"]
    assert all(one.method.name == name and one.optim == AUTO.optim and one.request == AUTO.request for name, one in found.items())
    assert (found["uno_s"].method.penalty, found["uno_s"].method.surgery_every) == (0.01, 2)


def test_a_request_that_leaves_no_choice_is_refused() -> None:
    alone = AUTO.model_copy(update={"request": AUTO.request.model_copy(update={"exchange": {}})})
    with pytest.raises(InputError, match="auto has only esd to choose from"):
        contestants(alone)
    by_data = alone.model_copy(update={"method": alone.method.model_copy(update={"targets": "data"})})
    assert len(contestants(by_data)) == 4


def test_the_contest_has_noise_and_measures_of_its_own() -> None:
    short = limited(AUTO, seconds=3.0, steps=6)
    assert short.seed != AUTO.seed and (short.optim.max_seconds, short.optim.max_steps) == (3.0, 6)
    assert limited(AUTO, seconds=None, steps=None).optim.max_steps == AUTO.optim.max_steps
    assert short.request == AUTO.request and short.evaluate.samples == AUTO.evaluate.samples


def outcome(settled: int | None, mean: float, lowest: float, seconds: float) -> dict[str, Any]:
    timing = {"step_seconds": 4.0, "seconds_per_step": 0.5, "seconds_to_forget": seconds if settled else None}
    return {"settled_step": settled, "steps": 8, "after": {"retain_accuracy": {"mean": mean, "min": lowest}}, "timing": timing}


def test_who_keeps_the_rest_and_settles_in_fewest_seconds_wins() -> None:
    checks = [{"step": 0, "forget_fraction/high": 1.0}, {"step": 8, "forget_fraction/high": 0.1}]
    standings = [
        standing("esd", outcome(2, 0.5, 0.1, 0.5), checks, AUTO),  # quickest, but what is kept is below the gate
        standing("exchange", outcome(4, 0.99, 0.95, 2.0), checks, AUTO),
        standing("uno_s", outcome(2, 0.99, 0.95, 1.5), checks, AUTO),  # fewer steps, and fewer seconds too
        standing("surgery", {"failed": "step 1: loss is not finite"}, [], AUTO),
    ]
    assert [one["method"] for one in order(standings)] == ["uno_s", "exchange", "esd", "surgery"]
    undecided = [
        standing(name, outcome(None, 0.99, 0.95, 0), [{"step": 8, "forget_fraction/high": held}], AUTO)
        for name, held in (("a", 0.6), ("b", 0.2))
    ]
    assert [one["method"] for one in order(undecided)] == ["b", "a"]


def test_the_winner_runs_as_if_it_had_been_named() -> None:
    named = load(UnlearnConfig, "jobs/configs/quickstart.yaml", ["storage=/nowhere", "method.name=uno_s"])
    assert settled_on(AUTO, {"winner": "uno_s"}) == named


def test_the_better_half_goes_on_with_twice_the_seconds() -> None:
    costs = {"exchange": 0.1, "surgery": 0.2, "uno_s": 0.5, "esd": 0.3}
    bounds = {"exchange": 0.5, "surgery": 0.2, "uno_s": 0.1, "esd": 0.9}
    played: list[tuple[list[str], float | None, int]] = []

    def play(field: dict[str, UnlearnConfig]) -> list[dict[str, Any]]:
        optim = next(iter(field.values())).optim
        played.append((list(field), optim.max_seconds, optim.max_steps))
        return [
            standing(name, outcome(None, 0.99, 0.95, 0), [{"step": 8, "forget_fraction/high": bounds[name]}], AUTO)
            | {"seconds_per_step": costs[name]}
            for name in field
        ]

    found = hold(AUTO, play)
    assert found["winner"] == "uno_s" and found["seconds"] == AUTO.autopilot.steps * 0.5
    assert played == [
        (["exchange", "surgery", "uno_s", "esd"], None, AUTO.evaluate.every),
        (["exchange", "surgery", "uno_s", "esd"], 6.0, AUTO.optim.max_steps),
        (["uno_s", "surgery"], 12.0, AUTO.optim.max_steps),
    ]
    assert [one["method"] for one in found["rounds"][0]["standings"]] == ["uno_s", "surgery", "exchange", "esd"]


def test_a_contest_in_which_everybody_fails_is_no_contest() -> None:
    with pytest.raises(RuntimeError, match="every contestant failed: exchange: nan"):
        hold(AUTO, lambda field: [standing(name, {"failed": "nan"}, [], AUTO) for name in field])
    calls = iter([None, "nan", "nan"])

    def later(field: dict[str, UnlearnConfig]) -> list[dict[str, Any]]:
        failed = next(calls)
        good = standing("x", outcome(None, 0.99, 0.95, 0), [{"step": 2, "forget_fraction/high": 1.0}], AUTO)
        return [{"method": name, "failed": failed} if failed else {**good, "method": name} for name in field]

    with pytest.raises(RuntimeError, match="every contestant failed, exchange with: nan"):
        hold(AUTO, later)
