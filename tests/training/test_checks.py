"""Checks beside the training, stopping when told, and checkpoints: nothing of it changes what comes out."""

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch.distributed as dist
from distributed import run_world
from runs import run_config, run_inputs
from torch import Tensor

from models.weights import weights_digest
from pipeline.evaluation.confidence import proportion
from pipeline.evaluation.context import AFTER
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.loop import Hooks, Interrupted, Outcome, unlearn
from pipeline.training.periodic_eval import MOST_PENDING, Check, Elsewhere, check, standing_in
from pipeline.training.step import Inputs
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.parameters import select

SETTLES = {
    "gate.max_forget_fraction": 1.0,
    "evaluate.patience_steps": 4,
    "optim.max_steps": 30,
    "evaluate.retention_floor": None,
}


class Late:
    """An evaluator whose every outcome comes `polls` questions late; the checks of `fails` never succeed."""

    def __init__(self, polls: int, fails: tuple[int, ...] = (), **channels: Any) -> None:
        self._inputs = inputs_of(**channels)
        self._polls, self._fails = polls, fails
        self._sent: deque[list[Any]] = deque()
        self.most, self.steps = 0, []  # type: ignore[var-annotated]

    def send(self, step: int, weights: Mapping[str, Tensor]) -> None:
        self._sent.append([self._polls, step, {name: value.clone() for name, value in weights.items()}])
        self.most = max(self.most, len(self._sent))
        self.steps.append(step)

    def take(self, wait_s: float) -> tuple[int, Check | None] | None:
        if not self._sent:
            return None
        self._sent[0][0] -= 1
        if self._sent[0][0] > 0 and not wait_s:
            return None
        _, step, weights = self._sent.popleft()
        if step in self._fails:
            return step, None
        with standing_in(select(self._inputs.model, self._inputs.config.trainable), weights):
            return step, check(self._inputs, step, final=False)


def decided(outcome: Outcome) -> tuple[Any, ...]:
    """All that a run decides, without its timings."""
    return (
        *(
            outcome.steps,
            outcome.best_step,
            outcome.stopped,
            outcome.first_crossing_step,
            outcome.settled_step,
        ),
        *(weights_digest(outcome.trained), outcome.before, outcome.after),
    )


def inputs_of(changes: dict[str, Any] | None = None, **channels: Any) -> Inputs:
    return replace(run_inputs(run_config(**(changes or SETTLES))), **channels)


def ran(changes: dict[str, Any] | None = None, start: Checkpoint | None = None, **hooks: Any) -> Outcome:
    return unlearn(inputs_of(changes), start, hooks=Hooks(**hooks))


@pytest.fixture(scope="module")
def in_place() -> Outcome:
    return ran()


@pytest.mark.parametrize("polls", [1, 2, 5, 1000])
def test_checks_beside_the_training_decide_the_same_however_late_they_come(
    polls: int, in_place: Outcome
) -> None:
    evaluator = Late(polls)
    outcome = ran(evaluator=evaluator)
    assert in_place.stopped == "settled" and decided(outcome) == decided(in_place)
    # it did run ahead
    assert evaluator.most <= MOST_PENDING + 1 and (polls < 5 or evaluator.steps[-1] > outcome.steps)


def test_a_check_that_fails_never_settles_anything(in_place: Outcome) -> None:
    late = ran(evaluator=Late(2, fails=(4,)))
    assert (in_place.settled_step, late.settled_step, late.missing) == (2, 6, (4,))
    never = ran({**SETTLES, "optim.max_steps": 8}, evaluator=Late(2, fails=tuple(range(100))))
    assert (never.settled_step, never.first_crossing_step, never.stopped) == (None, None, "steps")
    assert never.missing == (2, 4, 6, 8)


def test_a_run_stopped_with_checks_under_way_goes_on_to_the_same_end(in_place: Outcome) -> None:
    """Stopped after any step: the checkpoint holds the weights of the checks whose outcome is not known."""
    for at in (3, 5, 6):
        saved: list[dict[str, bytes]] = []
        taken: list[int] = []
        with pytest.raises(Interrupted) as stopped:
            ran(
                evaluator=Late(1000),
                timing=lambda seconds, taken=taken: taken.append(seconds["step"]),
                interrupted=lambda taken=taken, at=at: "told to" if len(taken) >= at - 1 else None,
                save=lambda checkpoint, saved=saved: saved.append(checkpoint.to_files()),
            )
        assert stopped.value.step == at and "told to" in str(stopped.value)
        start = Checkpoint.from_files(saved[-1])
        assert (start.iteration, start.progress["step"]) == (at, at)
        assert sorted(start.pending) == [step for step in (2, 4, 6) if step <= at]
        assert decided(ran(start=start, evaluator=Late(2))) == decided(in_place)


def stopped_while_waiting_and_continued() -> list[str]:
    """On each of two ranks: a run stopped after its last step with every check under way, and what comes of
    going on from there."""
    changes = {**SETTLES, "optim.max_steps": 6}
    saved: list[dict[str, bytes]] = []
    taken: list[int] = []
    alone = dist.new_group([0])  # whoever checks does so without the other rank
    first = dist.get_rank() == 0
    stopped = inputs_of(changes)
    hooks = Hooks(
        evaluator=Late(1000) if first else Elsewhere(),
        timing=lambda seconds: taken.append(1),
        interrupted=lambda: "told to" if len(taken) >= 5 else None,
        save=lambda checkpoint: saved.append(checkpoint.to_files()),
    )
    with pytest.raises(Interrupted):
        unlearn(stopped, hooks=hooks)
    asked: list[int] = []

    def asked_too_often() -> str | None:
        asked.append(1)
        return "it waits for ever" if len(asked) > 100 else None

    # every rank reads the same checkpoint: the first one's, which names the checks under way
    pending = (
        Checkpoint.from_files(saved[-1]).pending if first else {step: saved_by(stopped) for step in (2, 4, 6)}
    )
    start = replace(Checkpoint.from_files(saved[-1]), pending=pending)
    assert start.iteration == 6 and sorted(start.pending) == [2, 4, 6]
    evaluator = Late(2, collectives=Collectives(alone)) if first else Elsewhere()
    again = ran(changes, start, evaluator=evaluator, interrupted=asked_too_often)
    return [weights_digest(outcome.trained) for outcome in (again, ran(changes))]


def saved_by(inputs: Inputs) -> dict[str, Tensor]:
    """Weights of the right names and shapes."""
    return {name: p.detach().clone() for name, p in select(inputs.model, inputs.config.trainable).items()}


def test_two_ranks_stopped_after_the_last_step_do_not_wait_for_checks_that_only_one_of_them_follows() -> None:
    for continued, in_place_ in run_world(2, stopped_while_waiting_and_continued):
        assert continued == in_place_


def test_a_stop_at_any_step_is_bit_exact_in_place(in_place: Outcome) -> None:
    saved: list[dict[str, bytes]] = []
    with pytest.raises(Interrupted):
        ran(
            interrupted=lambda: "now" if len(saved) >= 1 else None,
            save=lambda checkpoint: saved.append(checkpoint.to_files()),
        )
    start = Checkpoint.from_files(saved[-1])
    assert decided(ran(start=start)) == decided(in_place)


def test_the_guard_ends_a_run_and_gives_back_what_it_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention that breaks down after step 4: three checks later it is over, and the weights are those of
    step 4."""
    from pipeline.training import periodic_eval

    weights: dict[int, str] = {}
    evaluate = periodic_eval.evaluate

    def damaged(names: Any, context: Any, ranks: Any, portions: Any = None) -> Any:
        sides = evaluate(names, context, ranks, portions)
        purpose = context.spec.purpose
        step = int(purpose.removeprefix("check at ")) if purpose != "final" else 0
        if step:
            weights[step] = weights_digest(
                {name: p.detach().clone() for name, p in select(context.model, "labels_and_adaln:1").items()}
            )
        accuracy = sides[AFTER]["retain_accuracy"]
        mean = 0.0 if step > 4 else 1.0
        n = accuracy["intervals"]["mean"]["n"]
        accuracy |= {"mean": mean, "min": mean}
        accuracy["intervals"]["mean"] = proportion(round(mean * n), n).to_dict()
        return sides

    monkeypatch.setattr(periodic_eval, "evaluate", damaged)
    outcome = ran({"optim.max_steps": 40, "evaluate.retention_floor": 0.7, "evaluate.retain_samples": 30})
    assert (outcome.stopped, outcome.steps, outcome.best_step, outcome.settled_step) == (
        "retention_floor",
        10,
        4,
        None,
    )
    assert weights_digest(outcome.trained) == weights[4] != weights[10]


def test_every_second_of_a_step_is_counted_once() -> None:
    laps: list[dict[str, Any]] = []
    ran({"method.name": "uno", "method.penalty": 0.1}, timing=laps.append, save=lambda checkpoint: None)
    assert [lap["step"] for lap in laps] == [1, 2, 3, 4, 5, 6]
    for lap in laps:
        phases = {
            name: lap.get(name, 0.0) for name in ("data", "forward", "gradients", "second_order", "optimiser")
        }
        assert all(phases.values()) and sum(phases.values()) <= lap["step_seconds"] + 1e-3
        assert ("evaluation" in lap) == ("checkpoint" in lap) == (lap["step"] % 2 == 0)
    # what a busy machine took in between is nobody's
    steps = sorted(laps, key=lambda lap: lap["step_seconds"])[: len(laps) // 2]
    assert sum(
        sum(lap.get(n, 0.0) for n in ("data", "forward", "gradients", "second_order", "optimiser"))
        for lap in steps
    ) > 0.5 * sum(lap["step_seconds"] for lap in steps)


def test_what_the_base_hardly_samples_is_noted_before_the_first_step() -> None:
    intervals = {"per_class": {"2": proportion(1, 50).to_dict(), "3": proportion(48, 50).to_dict()}}
    accuracy = {"mean": 0.5, "min": 0.02, "neighbours": None, "intervals": intervals}
    metrics = {"forget_fraction": None, "exchange_fraction": None, "exchange_density": None, "fid": {}}
    measured = Check(metrics=metrics | {"retain_accuracy": accuracy}, seconds=1.0)
    assert {key: value for key, value in measured.to_record(0).items() if "lacks" in key} == {
        "lacks/class_2": 0.02
    }
    assert not any("lacks" in key for key in measured.to_record(2))
