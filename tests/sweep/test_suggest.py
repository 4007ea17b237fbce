"""Suggestions: a function of the seed and of results in order, whoever finishes first and whatever is
interrupted."""

import pickle
import random
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.config.sweep import Distribution, Search
from pipeline.sweep.suggest import Suggestions, importance

SPACE = {
    "method.penalty": Distribution(loguniform=(1e-4, 1), zero=True),
    "method.surgery_every": Distribution(choice=[1, 2, 3, 4, 5]),
    "trainable": Distribution(choice=["labels", "all"]),
    "optim.ema": Distribution(uniform=(0.1, 0.9)),
}
FIRST = {"method.penalty": 0.01, "method.surgery_every": 2, "trainable": "all", "optim.ema": 0.7}


def suggestions(
    seed: int = 0, algorithm: str = "tpe", concurrency: int = 3, objectives: int = 2
) -> Suggestions:
    directions: Sequence[Any] = ["minimize", "maximize"][:objectives]
    search = Search(algorithm=algorithm, concurrency=concurrency, startup_trials=4)  # type: ignore[arg-type]
    return Suggestions(
        space=SPACE,
        search=search,
        seed=seed,
        directions=directions,
        points=[FIRST, {**FIRST, "method.penalty": 0.0}],
    )


def judged(settings: dict[str, Any], objectives: int) -> list[float]:
    return [settings["method.surgery_every"] + settings["method.penalty"], -settings["optim.ema"]][
        :objectives
    ]


def played(
    these: Suggestions, *, machine: int, trials: int = 14, broken: int = 5, interrupt: bool = False
) -> list[dict[str, Any]]:
    """Trials side by side that finish in an order of the machine's own."""
    finishing, running = random.Random(machine), dict[int, dict[str, Any]]()
    while len(these.asked) < trials or running:
        while len(these.asked) < trials and these.ready():
            number, settings = these.ask()
            running[number] = settings
        assert len(running) <= these.search.concurrency
        number = finishing.choice(sorted(running))
        settings = running.pop(number)
        these.tell(number, None if number == broken else judged(settings, len(these.directions)))
        if interrupt:
            these = pickle.loads(pickle.dumps(these))
    return these.asked


@pytest.mark.parametrize(
    ("algorithm", "concurrency", "objectives"),
    [("tpe", 1, 1), ("tpe", 3, 1), ("tpe", 3, 2), ("random", 2, 1)],
)
def test_the_same_seed_gives_the_same_sequence(algorithm: str, concurrency: int, objectives: int) -> None:
    def sequence(machine: int, interrupt: bool = False, seed: int = 0) -> list[dict[str, Any]]:
        return played(
            suggestions(seed, algorithm, concurrency, objectives), machine=machine, interrupt=interrupt
        )

    first = sequence(machine=1)
    assert sequence(machine=2) == first and sequence(machine=3, interrupt=True) == first
    assert sequence(machine=1, seed=1)[2:] != first[2:]


def test_what_the_results_say_is_heard_by_tpe_only() -> None:
    def sequence(algorithm: str, sign: int) -> list[dict[str, Any]]:
        these = suggestions(algorithm=algorithm, concurrency=1, objectives=1)
        for _ in range(12):
            number, settings = these.ask()
            these.tell(number, [sign * settings["method.surgery_every"]])
        return these.asked

    assert sequence("random", 1) == sequence("random", -1)
    assert sequence("tpe", 1) != sequence("tpe", -1)


def test_every_point_lies_in_the_space_and_none_comes_twice() -> None:
    found = played(suggestions(algorithm="random"), machine=0, trials=60)
    assert found[0] == FIRST and found[1] == {**FIRST, "method.penalty": 0.0}
    penalties = [point["method.penalty"] for point in found]
    assert all(value == 0 or 1e-4 <= value <= 1 for value in penalties)
    assert 2 <= penalties.count(0.0) <= 20 and {point["method.surgery_every"] for point in found} == {
        1,
        2,
        3,
        4,
        5,
    }
    assert all(0.1 <= point["optim.ema"] <= 0.9 for point in found)
    assert len({repr(point) for point in found}) == len(found)


def test_a_space_smaller_than_the_budget_repeats_itself_at_last() -> None:
    small = Suggestions(
        space={"method.surgery_every": Distribution(choice=[1, 2])},
        search=Search(concurrency=1, algorithm="random"),
        seed=0,
        directions=["minimize"],
        points=[],
    )
    for _ in range(4):
        number, settings = small.ask()
        small.tell(number, [settings["method.surgery_every"]])
    assert (
        sorted(point["method.surgery_every"] for point in small.asked[:2]) == [1, 2] and len(small.asked) == 4
    )


def test_a_suggestion_waits_for_the_trials_it_is_made_of() -> None:
    these = suggestions(concurrency=2)
    for _ in range(2):
        these.ask()
    assert not these.ready()
    these.tell(1, [1.0, 1.0])
    assert not these.ready()  # trial 2 is made of trial 0, not of whoever was quicker
    these.tell(0, [1.0, 1.0])
    assert these.ready()


def test_importance_names_what_the_objective_depends_on() -> None:
    these = suggestions(algorithm="random", concurrency=1, objectives=2)
    for _ in range(25):
        number, settings = these.ask()
        these.tell(number, [float(settings["method.surgery_every"]), settings["optim.ema"]])
    first, second = importance(these, 0), importance(these, 1)
    assert (
        max(first, key=lambda key: first[key]) == "method.surgery_every"
        and max(second, key=lambda key: second[key]) == "optim.ema"
    )
    assert sum(first.values()) == pytest.approx(1)
    assert importance(suggestions(), 0) == {}
