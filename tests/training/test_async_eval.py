"""What becomes of a check that waits, runs, fails or takes too long; the tasks do as they are told."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from runs import run_config

from pipeline.training import async_eval_ray
from pipeline.training.async_eval_ray import RayEvaluator

SOURCES: dict[str, Any] = dict.fromkeys(async_eval_ray.SOURCES, "uri") | {"subject": {}}


class Tasks:
    """In Ray's place. Task n has `ready[n]` outcomes ready; one that is an exception is raised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ready: list[int] = []
        self.cancelled: list[int] = []
        self.now = 100.0
        self.outcomes: list[Any] = []
        for name in ("remote", "wait", "get", "cancel"):
            monkeypatch.setattr(ray, name, getattr(self, f"_{name}"))
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def _remote(self, function: Any) -> Any:
        tasks = self

        class Remote:
            def options(self, **options: Any) -> "Remote":
                assert options["num_returns"] == "streaming"
                return self

            def remote(self, *arguments: Any) -> "Stream":
                tasks.ready.append(0)
                return Stream(len(tasks.ready) - 1)

        return Remote()

    def _wait(self, streams: list["Stream"], timeout: float) -> tuple[list["Stream"], list["Stream"]]:
        (stream,) = streams
        return ([stream], []) if self.ready[stream.number] > stream.taken else ([], [stream])

    def _get(self, outcome: Any) -> Any:
        if outcome == 0:
            return None
        value = self.outcomes.pop(0)
        if isinstance(value, Exception):
            raise value
        return value

    def _cancel(self, stream: "Stream", force: bool) -> None:
        self.cancelled.append(stream.number)


class Stream(Iterator[int]):
    def __init__(self, number: int) -> None:
        self.number, self.taken = number, 0

    def __next__(self) -> int:
        self.taken += 1
        return self.taken - 1


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Tasks:
    return Tasks(monkeypatch)


def evaluator() -> RayEvaluator:
    config = run_config(**{"evaluate.asynchronous": True, "evaluate.timeout_s": 20, "train.wait_s": 300})
    made = RayEvaluator(SOURCES, config)
    for step in (2, 4):
        made.send(step, {})
    return made


def test_a_checks_time_is_counted_from_its_start_and_not_from_its_queue(tasks: Tasks) -> None:
    checks = evaluator()
    tasks.now += 250  # no place for it yet
    assert checks.take(0) is None
    tasks.ready[0] = 1  # it has begun
    assert checks.take(0) is None
    tasks.now += 19
    assert checks.take(0) is None and not tasks.cancelled
    tasks.ready[0], tasks.outcomes = 2, ["a check"]
    assert checks.take(0) == (2, "a check")
    tasks.ready[1] = 1
    assert checks.take(0) is None
    tasks.now += 21
    assert checks.take(0) == (4, None) and tasks.cancelled == [1]
    assert checks.take(0) is None  # nothing is under way any more


def test_a_check_that_never_gets_a_place_or_fails_counts_as_missing(tasks: Tasks) -> None:
    checks = evaluator()
    tasks.now += 301
    assert checks.take(0) == (2, None) and tasks.cancelled == [0]
    tasks.ready[1], tasks.outcomes = 2, [ray.exceptions.RayError("died")]
    assert checks.take(0) == (4, None) and tasks.cancelled == [0]
