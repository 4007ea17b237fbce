"""The unlearning run on one worker: a plain loop that Ray Train, torchrun or a single process may call.

A step moves the trained parameters (step.py); every few steps a check on fresh noise and a checkpoint. The
run ends when the settling rule says so or the steps are spent, and gives back the weights of the best check.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.weights import weights_digest
from pipeline.config import UnlearnConfig
from pipeline.config.optim import Optim
from pipeline.evaluation.portions import Portions
from pipeline.evaluation.rotation import Window
from pipeline.evaluation.stopping_rule import SettleRule
from pipeline.runtime.stopwatch import Stopwatch, phase, timed
from pipeline.training.checkpoint import Checkpoint, optimiser_moments, restore, restore_moments
from pipeline.training.initialise import begin
from pipeline.training.periodic_eval import Checks, Evaluator, check, standing_in
from pipeline.training.step import Inputs, State, open_state, train_step
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.parameters import flat, unflat

# what fields of the stopping rule are called in checkpoints that were written before
RULE_BEFORE = {
    "guard": "retention_floor",
    "guard_checks": "floor_patience",
    "hold_steps": "patience_steps",
    "kept_step": "best_step",
}
FORGET = "forget optimiser "  # what the names of its moments begin with in a checkpoint
GO_ON, STOP, INTERRUPTED = 0, 1, 2  # what the ranks agree on: the largest of their words counts


class Interrupted(Exception):
    """The run was asked to stop; a checkpoint of `step` lies ready. Raised on every rank at once."""

    def __init__(self, step: int, reason: str):
        super().__init__(f"stopped after step {step}: {reason}")
        self.step, self.reason = step, reason


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What is around a run: none of it changes a number."""

    # {"result", "record"} of the base model, where it was measured already
    before: dict[str, Any] | None = None
    record: Callable[[dict[str, Any]], None] = lambda record: None  # a line of metrics.jsonl
    timing: Callable[[dict[str, Any]], None] = lambda seconds: None  # a step's seconds by phase, on this rank
    # on the rank that writes checkpoints; of a sharded run on every rank: its part
    save: Callable[[Checkpoint], object] | None = None
    evaluator: Evaluator | None = None  # makes the checks beside the training; None: all ranks, in place
    portions: Callable[[str], Portions | None] = lambda name: (
        None
    )  # where a long measure of that name goes on
    interrupted: Callable[[], str | None] = lambda: None  # why the run should stop now, if it should


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to. `trained` are the weights to register, those of `best_step`, of a sharded run on
    the first rank alone; `stopped` says what ended it (settled, retention_floor, checks, steps); `missing`
    are steps whose check could not be made.
    """

    steps: int
    trained: Mapping[str, Tensor]
    best_step: int
    stopped: str
    missing: tuple[int, ...]
    first_crossing_step: int | None
    settled_step: int | None
    before: dict[str, Any]
    after: dict[str, Any]
    timing: dict[str, float | None]

    def to_dict(self, world_size: int) -> dict[str, Any]:
        """Plain data without the weights, of a run on `world` workers."""
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "trained"}
        return plain | {"missing_checks": list(plain.pop("missing")), "world_size": world_size}


def unlearn(inputs: Inputs, start: Checkpoint | None = None, *, hooks: Hooks | None = None) -> Outcome:
    """Run from the base weights, or go on from `start` as if it had never stopped. Raises `Interrupted` when
    asked to stop."""
    config, collectives, hooks = inputs.config, inputs.collectives, hooks or Hooks()
    last, every = config.optim.max_steps, config.evaluate.every

    # The state is made at the base weights; only then a run begins, or goes on where it stopped.
    cpu_started = time.process_time()
    state = open_state(inputs)
    prepare_cpu_s = time.process_time() - cpu_started
    if start is None:
        iteration, progress = 0, _begin(inputs, hooks) | {"prepare_cpu_seconds": prepare_cpu_s}
    else:
        iteration, progress = start.iteration, dict(start.progress)
    if state.sharded:
        state.sharded.release()
    if start is None:
        state.average.begin(state.named)
    if state.teacher:
        push = {int(c): distance for c, distance in progress["push"].items()}
        state.teacher.aim(config.request.exchange_classes, push)
    checks = Checks(
        inputs=inputs,
        hooks=hooks,
        standing_in=state.sharded.standing_in if state.sharded else partial(standing_in, state.named),
        rule=_rule(config, progress["before"]),
        before=progress["before"],
    )
    if start is not None:
        _restore(state, checks, start, inputs.device)

    def agreed(stop: bool) -> int:
        return collectives.largest(INTERRUPTED if hooks.interrupted() else STOP if stop else GO_ON)

    step, word = iteration - config.optim.moment_warmup_steps, GO_ON
    over = checks.rule.stopped or step >= last
    with Stopwatch(inputs.device.type) as watch:
        clock = _Clock(progress)
        for batch in timed("data", () if over else inputs.streams.retain(iteration)):
            # A step.
            clock.fetched()
            iteration += 1
            step = iteration - config.optim.moment_warmup_steps
            log = train_step(state.inputs, state, batch, iteration)
            seconds = clock.stepped(step)
            hooks.record({"kind": "step", "step": step, **log, **seconds})

            # A check of the averaged weights, or what came of those under way.
            due = step >= 1 and (step % every == 0 or step == last)
            if due:
                checks.make(step, state.average.values)
            checks.collect()

            # Stop? All ranks together, with a checkpoint.
            spent = clock.over(config.optim)
            word = agreed(checks.rule.stopped is not None or (due and spent))
            if hooks.save and (due or word == INTERRUPTED):
                with phase("checkpoint"):
                    progress.update(step=step, **checks.plain())
                    hooks.save(_checkpoint(iteration, state, checks, progress))
            hooks.timing({"step": step, **watch.lap(), "step_seconds": sum(seconds.values())})
            if word != GO_ON or step >= last:
                break
            clock.waiting()

    # The checks still under way.
    while word != INTERRUPTED and (word := agreed(bool(checks.pending))) == STOP:
        checks.collect(wait_s=1.0)
    if word == INTERRUPTED:
        raise Interrupted(step, hooks.interrupted() or "another rank was told to")

    # The best weights, measured as the base was.
    with _best_weights(checks, state, collectives) as best_weights:
        portions = hooks.portions(f"after-{weights_digest(best_weights)}")
        after = check(inputs, step, final=True, portions=portions)
    progress["final_check"] = after.seconds
    if state.sharded:  # they are the model's own, which goes on
        first = collectives.rank == 0
        best_weights = {name: value.to("cpu", copy=True) for name, value in best_weights.items() if first}
    return _outcome(checks, progress, best_weights, after.to_result(), last)


class _Clock:
    """Seconds of a run's steps, waiting for rows and working on them, kept in its progress."""

    def __init__(self, progress: dict[str, Any]) -> None:
        self._progress = progress
        self.waiting()

    @property
    def spent_s(self) -> float:
        return sum(self._progress["step_seconds"])

    def over(self, optim: Optim) -> bool:
        """Whether the seconds that the run may take are spent."""
        cpu_s = self._progress["cpu_seconds"] + self._progress.get("prepare_cpu_seconds", 0.0)
        return (optim.max_seconds is not None and self.spent_s >= optim.max_seconds) or (
            optim.max_cpu_seconds is not None and cpu_s >= optim.max_cpu_seconds
        )

    def waiting(self) -> None:
        self._waiting_since = time.perf_counter()

    def fetched(self) -> None:
        self._started, self._cpu_started = time.perf_counter(), time.process_time()
        self._data_s = self._started - self._waiting_since
        if self._progress["first_batch"] is None:
            self._progress["first_batch"] = self._data_s

    def stepped(self, step: int) -> dict[str, float]:
        seconds = time.perf_counter() - self._started
        self._progress["cpu_seconds"] += time.process_time() - self._cpu_started
        if step >= 1:
            self._progress["step_seconds"].append(round(seconds + self._data_s, 6))
        return {"seconds": seconds, "seconds_data": self._data_s}


def _begin(inputs: Inputs, hooks: Hooks) -> dict[str, Any]:
    """The progress of a run that has not taken a step: what the base model measures, and how far beyond its
    exchange class each forgotten label is aimed. Leaves the model where the run begins."""
    before = hooks.before
    if before is None:
        measures = check(inputs, 0, final=True, portions=hooks.portions("before"))
        before = {"result": measures.to_result(), "record": measures.to_record(0)}
    hooks.record(before["record"])
    push = {str(c): distance for c, distance in begin(inputs, hooks.record).items()}
    return {
        "before": before["result"],
        "step_seconds": [],
        "cpu_seconds": 0.0,
        "first_batch": None,
        "push": push,
    }


def _rule(config: UnlearnConfig, before: Mapping[str, Any]) -> SettleRule:
    # None without labels: then the mixture's overlap with itself
    evaluate, accuracy = config.evaluate, before["retain_accuracy"]["mean"]
    return SettleRule(
        target=(
            config.gate.max_forget_fraction if config.request.classes else config.gate.max_membership_auc
        ),
        patience_steps=evaluate.patience_steps,
        retention_floor=(
            None
            if evaluate.retention_floor is None
            else evaluate.retention_floor * (1.0 if accuracy is None else accuracy)
        ),
        floor_patience=evaluate.floor_patience,
        max_checks=evaluate.max_checks,
        alike=config.gate.min_exchange_fidelity,
        to_the_end=evaluate.to_the_end,
    )


def _checkpoint(iteration: int, state: State, checks: Checks, progress: dict[str, Any]) -> Checkpoint:
    moments, entries = optimiser_moments(state.optimizer, list(state.named)), {}
    if state.forget_optimizer:
        moments |= optimiser_moments(state.forget_optimizer, [FORGET + name for name in state.named])
    if state.redirect:
        adversary = state.redirect.adversary
        moments |= optimiser_moments(adversary.optimizer, adversary.names)
        entries = {name: e.detach().clone() for name, e in zip(adversary.names, adversary.entries)}
    return Checkpoint(
        iteration=iteration,
        trained={name: p.detach().clone() for name, p in state.named.items()},
        average={name: value.clone() for name, value in state.average.values.items()},
        moments=moments,
        adversary=entries,
        best_weights=checks.best_weights,
        pending=dict(checks.pending),
        progress=copy.deepcopy(progress),  # it is written while the run goes on
    )


@torch.no_grad()
def _restore(state: State, checks: Checks, start: Checkpoint, device: torch.device) -> None:
    restore(start, state.named, state.average.values, state.optimizer, list(state.named))
    if state.forget_optimizer:
        restore_moments(state.forget_optimizer, [FORGET + name for name in state.named], start.moments)
    if state.redirect:
        adversary = state.redirect.adversary
        adversary.restore([start.adversary[name] for name in adversary.names])
        restore_moments(adversary.optimizer, adversary.names, start.moments)
    for key, value in start.progress["rule"].items():
        setattr(checks.rule, RULE_BEFORE.get(key, key), value)
    checks.missing = list(start.progress["missing"])
    checks.window = Window(start.progress.get("window"))
    checks.best_weights = {name: value.to(device) for name, value in start.best_weights.items()}
    checks.pending = {
        step: {name: value.to(device) for name, value in weights.items()}
        for step, weights in start.pending.items()
    }
    checks.resume()


@contextmanager
def _best_weights(checks: Checks, state: State, collectives: Collectives) -> Iterator[dict[str, Tensor]]:
    """Context: the best weights, as the first rank has them, stand in for the trained parameters; those of
    the last step where no check could be made at all. Of a sharded run they stay there, whole."""
    last = state.average.values
    best = checks.best_weights or last
    if state.sharded:
        yield state.sharded.gather(best)
        return
    # in one order on all ranks: weights out of a checkpoint come in another
    parts = [best[name] for name in last]
    weights = dict(zip(last, unflat(collectives.broadcast(flat(parts, parts)), parts), strict=True))
    with standing_in(state.named, weights):
        yield weights


def _outcome(
    checks: Checks,
    progress: dict[str, Any],
    best_weights: Mapping[str, Tensor],
    after: dict[str, Any],
    last: int,
) -> Outcome:
    rule, spent = checks.rule, progress["step_seconds"]
    return Outcome(
        steps=rule.last_step or last,
        trained=best_weights,
        best_step=rule.best_step if rule.best_step is not None else last,
        stopped=rule.stopped or "steps",
        missing=tuple(checks.missing),
        first_crossing_step=rule.first_crossing_step,
        settled_step=rule.settled_step,
        before=progress["before"],
        after=after,
        timing={
            "seconds_to_first_batch": progress["first_batch"],
            "seconds_per_step": statistics.median(spent) if spent else None,
            "seconds_to_forget": sum(spent[: rule.settled_step]) if rule.settled_step else None,
            "step_seconds": sum(spent),
            "step_cpu_seconds": progress["cpu_seconds"],
            "prepare_cpu_seconds": progress.get("prepare_cpu_seconds", 0.0),
            "final_check_seconds": progress["final_check"],
        },
    )
