"""The sweep on Ray Tune: in-order suggestions, early stopping on the settled measure, what is there is not
run again."""

import logging
import os
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from pipeline import storage
from pipeline.config import SweepConfig, UnlearnConfig
from pipeline.sweep import scores
from pipeline.sweep.suggest import Suggestions
from pipeline.sweep.trial_ray import TRIAL, trial

TUNE = "tune"  # Tune's own notes
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Watch:
    """The driver's side of a running sweep: `ended` is called with every trial's row, once."""

    sweep_uri: str
    ended: Callable[[dict[str, Any]], None]
    stood: Callable[[dict[str, Any]], None]
    began: dict[int, float] = field(default_factory=dict)


_WATCHES: dict[str, Watch] = {}  # by sweep URI: Tune pickles its callbacks, and a watch holds what cannot be


class Reporter(tune.Callback):
    """Hands what Tune says of trials to this process's watch."""

    def __init__(self, sweep_uri: str) -> None:
        self._sweep_uri = sweep_uri

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if not result["finished"]:
            _WATCHES[self._sweep_uri].stood(result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        cause = trial.get_pickled_error() or trial.get_error()
        said = [line.strip() for line in str(cause).splitlines() if line.strip()]
        self._end(trial, said[-1][:600] if said else "no reason given")

    def _end(self, trial: Any, error: str | None) -> None:
        watch = _WATCHES[self._sweep_uri]
        number = trial.config["number"]
        seconds = time.time() - watch.began[number] if number in watch.began else None
        row = row_of(
            number,
            trial.config["settings"],
            trial.last_result or {},
            error,
            attempts=trial.num_failures + (error is None),
            wall=seconds,
        )
        watch.ended(row)


def row_of(
    number: int,
    settings: Mapping[str, Any],
    last: Mapping[str, Any],
    error: str | None,
    *,
    attempts: int,
    wall: float | None,
) -> dict[str, Any]:
    """A trial as the table has it. `last` is what it reported last, `error` why it gave up
    after its retries."""
    failed = error or last.get("failed")
    status = scores.FAILED if failed else scores.FINISHED if last.get("finished") else scores.STOPPED
    return {
        "number": number,
        "settings": dict(settings),
        "status": status,
        "reason": failed,
        "attempts": attempts,
        "step": last.get("step"),
        "held": last.get("held"),
        "values": None if failed else last.get("values"),
        "gate_passed": bool(last.get("gate_passed")),
        "settled_step": last.get("settled_step"),
        "first_crossing_step": last.get("first_crossing_step"),
        "after": last.get("after"),
        "seconds": {**(last.get("seconds") or {}), "wall": wall},
    }


class InOrder(Searcher):
    """Tune's view of `Suggestions`. `steps`: what the trials took, for the budget of steps."""

    def __init__(
        self, suggestions: Suggestions, trials: int, steps: int | None, max_steps: int, sweep_uri: str
    ) -> None:
        super().__init__()
        self._suggestions, self._trials, self._budget, self._max_steps = suggestions, trials, steps, max_steps
        self._sweep_uri = sweep_uri
        self._numbers: dict[str, int] = {}
        self._steps: dict[int, int] = {}

    def suggest(self, trial_id: str) -> Any:
        asked = len(self._suggestions.asked)
        if asked >= self._trials or not self._affordable(asked):
            return Searcher.FINISHED
        if not self._suggestions.ready():
            return None
        number, settings = self._suggestions.ask()
        self._numbers[trial_id] = number
        watch = _WATCHES[self._sweep_uri]
        watch.began[number] = time.time()
        return {"number": number, "settings": settings}

    def _affordable(self, number: int) -> bool:
        """Whether a whole trial fits into what is left. Trials that may still run count in full, so this too
        goes by order only."""
        if self._budget is None:
            return True
        surely = number - self._suggestions.search.concurrency + 1
        spent = sum(
            self._steps.get(n, self._max_steps) if n < surely else self._max_steps for n in range(number)
        )
        return spent + self._max_steps <= self._budget

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number = self._numbers.get(trial_id)
        if number is None:
            return
        known = result if result is not None and not error else {}
        self._steps[number] = int(known.get("step") or 0)
        self._suggestions.tell(number, known.get("values"))

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(pickle.dumps((self._suggestions, self._numbers, self._steps)))

    def restore(self, checkpoint_path: str) -> None:
        self._suggestions, self._numbers, self._steps = pickle.loads(Path(checkpoint_path).read_bytes())


def scheduler_of(config: SweepConfig, base: UnlearnConfig) -> Any:
    """Tune's scheduler on the settled measure; a trial at its last step is never stopped, since its end is
    still to be measured."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule

    grace = config.scheduler.grace_steps or base.evaluate.hold_steps
    if config.scheduler.kind == "asha":
        return ASHAScheduler(
            time_attr="step",
            metric="held",
            mode="min",
            grace_period=grace,
            max_t=base.optim.max_steps + 1,
            reduction_factor=config.scheduler.reduction,
        )
    if config.scheduler.kind == "median":
        return MedianStoppingRule(
            time_attr="step",
            metric="held",
            mode="min",
            grace_period=grace,
            min_samples_required=config.scheduler.min_trials,
            hard_stop=True,
        )
    return FIFOScheduler()


def search(
    config: SweepConfig, base: UnlearnConfig, plan: dict[str, Any], suggestions: Suggestions, watch: Watch
) -> list[int]:
    """Run the trials that are not there yet; every one that ends goes through `watch`. Returns the numbers
    that are missing then.

    A sweep that was killed is restored by Tune: finished trials stay finished, those under way start again
    (from their last checkpoint). What Tune had not noted when it was killed is found in storage, by number.
    """
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")  # how much of Tune's notes a kill may cost
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    # an interrupted sweep is not one that ended early
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune says nothing of its own
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.ERROR)
    place = storage.join(watch.sweep_uri, TUNE)
    filesystem, path = (
        (None, place)
        if storage.is_local(place)
        else (storage.arrow_filesystem(place), storage.filesystem(place)[1])
    )
    inline = config.trial.runner == "inline"
    resources = {"CPU": config.trial.cpus, "GPU": config.trial.gpus} if inline else {"CPU": 0.01}
    trainable = tune.with_resources(
        tune.with_parameters(trial, plan=plan), {key: value for key, value in resources.items() if value}
    )
    _WATCHES[watch.sweep_uri] = watch
    try:
        if tune.Tuner.can_restore(path, storage_filesystem=filesystem):
            tuner = tune.Tuner.restore(path, trainable, resume_errored=False, storage_filesystem=filesystem)
        else:
            searcher = InOrder(
                suggestions, config.budget.trials, config.budget.steps, base.optim.max_steps, watch.sweep_uri
            )
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=scheduler_of(config, base),
                    num_samples=config.budget.trials,
                    reuse_actors=inline and config.trial.reuse,
                    time_budget_s=config.budget.seconds,
                    trial_dirname_creator=_name,
                    trial_name_creator=_name,
                ),
                run_config=tune.RunConfig(
                    name=path.rsplit("/", 1)[1],
                    storage_path=path.rsplit("/", 1)[0],
                    storage_filesystem=filesystem,
                    failure_config=tune.FailureConfig(max_failures=config.trial.retries),
                    callbacks=[Reporter(watch.sweep_uri)],
                    verbose=0,
                ),
            )
        tuner.fit()
    finally:
        del _WATCHES[watch.sweep_uri]
    there = {row["number"] for row in rows(watch.sweep_uri)}
    whole = config.budget.steps is None and config.budget.seconds is None
    return [
        number
        for number in range(config.budget.trials if whole else max(there, default=-1) + 1)
        if number not in there
    ]


def _name(trial: Any) -> str:
    return f"{trial.config['number']:03d}-{trial.trial_id[-6:]}"


def rows(sweep_uri: str) -> list[dict[str, Any]]:
    """The rows of all trials that have ended, by number."""
    names = storage.listing(storage.join(sweep_uri, "trials"))
    places = [storage.join(sweep_uri, "trials", name, TRIAL) for name in sorted(names)]
    return [storage.read_json(place) for place in places if storage.exists(place)]
