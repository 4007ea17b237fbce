"""The sweep on Ray: what all trials share is made once, Optuna suggests, Tune runs and stops; what has ended
is not run again."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import ray
from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from pipeline import storage
from pipeline.config import SweepConfig, UnlearnConfig
from pipeline.data.partition import Partition, find_partition
from pipeline.data.partition_ray import build_partition
from pipeline.runs import preflight
from pipeline.runs.result import base_metrics_of
from pipeline.runtime import cluster_ray, compat_ray
from pipeline.sweep import scores
from pipeline.sweep.space import configured, distributions, settings_at, study_of
from pipeline.sweep.trial import SETTINGS, TRIAL, measure_base, rows, run_and_report, trial_uri
from pipeline.training.worker_inputs import Sources

if TYPE_CHECKING:
    from pipeline.sweep.search import PreparedSweep

TUNE = "tune"  # Tune's own notes; never read again
Row = dict[str, Any]


def make_plan(prepared: "PreparedSweep") -> dict[str, Any]:
    """What trials are handed: plain data, small. A partition for every batch size and the base model's
    measures are made here. Waits for a cluster that has no room for a trial yet."""
    config, base = prepared.config, prepared.base
    train = base.config.train
    inline = config.trial.runner == "inline"
    bundle = trial_resources(prepared)
    most = config.search.concurrency if inline else train.most
    cluster_ray.wait_for(bundle, 1 if inline else train.fewest, most, wait_s=train.wait_s)
    batch_size = config.space.get("optim.batch_size")
    sizes = batch_size.choice if batch_size else [base.config.optim.batch_size]
    by_size = {}
    for size in sizes or []:
        settings = configured(base.config, {"optim.batch_size": size})
        partition = build_partition(settings, base.lake, base.subject["neighbours"], base.stand_ins)
        by_size[str(size)] = {
            "partition_uri": partition.uri,
            "partition_digest": partition.digest,
            "before": base_metrics(replace(base, config=settings), partition, bundle),
        }
    print(
        f"  {len(by_size)} partition{'s' * (len(by_size) > 1)}, the base weights and their metrics are"
        " shared by all trials",
        flush=True,
    )
    return {
        "sweep_uri": prepared.uri,
        "base": base.config.model_dump(mode="json", exclude={"tracking": {"uri"}}),
        "shared": base.sources,
        "prepared": by_size,
        "objectives": list(config.search.objectives),
        "runner": config.trial.runner,
        "gpus": config.trial.gpus,
        "world": 1 if inline else train.most,
        "one_judge": base.one_judge,
        "judge_accuracy": base.judge.manifest.get("heldout_accuracy"),
        "address": os.environ.get("RAY_ADDRESS"),
    }


def base_metrics(
    prepared: preflight.Prepared, partition: Partition, bundle: dict[str, float]
) -> dict[str, Any]:
    """{"result", "record"} of the base model, taken by a task that holds `bundle` unless an earlier run took
    the same."""
    place, metrics = base_metrics_of(prepared, partition.digest)
    if metrics is None:
        config = prepared.config.model_dump(mode="json")
        metrics = on_one_worker(_measure_base, bundle, config, partition.uri, prepared.sources)
        storage.write_json(place, metrics)
    return metrics


def _measure_base(
    config: dict[str, Any], partition_uri: str, sources: dict[str, Any], gpu: bool
) -> dict[str, Any]:
    import torch

    settings = UnlearnConfig.model_validate(config)
    torch.set_num_threads(settings.train.threads)
    partition = find_partition(partition_uri)
    assert partition is not None
    return measure_base(settings, partition, Sources(**sources), torch.device("cuda" if gpu else "cpu"))


def trial_resources(prepared: "PreparedSweep") -> dict[str, float]:
    """What a trial's process holds or, on the main job's workers, one of those."""
    trial, train = prepared.config.trial, prepared.base.config.train
    inline = trial.runner == "inline"
    cpus, gpus = (trial.cpus, trial.gpus) if inline else (train.cpus_per_worker, train.gpus_per_worker)
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def on_one_worker(call: Any, bundle: dict[str, float], *arguments: Any) -> Any:
    """`call(*arguments, gpu)` as one Ray task that holds `bundle`."""
    task = ray.remote(num_cpus=bundle["CPU"], num_gpus=bundle.get("GPU", 0), max_retries=2)(call)
    with cluster_ray.plain_errors():
        return ray.get(task.remote(*arguments, bool(bundle.get("GPU"))))


def search(
    prepared: "PreparedSweep",
    plan: dict[str, Any],
    on_end: Callable[[Row], None],
    on_report: Callable[[dict[str, Any]], None],
) -> None:
    """Run the trials that have not ended yet; `on_end` is called with every one's row.

    The trials of a sweep that was killed are found in storage: those that have ended are results for Optuna,
    those under way start again first, from their last checkpoint.
    """
    config, base = prepared.config, prepared.base.config
    ended = rows(prepared.uri)
    under_way = _under_way(prepared.uri)
    if len(ended) >= config.budget.trials:
        return
    points = [row["settings"] for row in ended] + list(under_way.values())
    fixed = [point for point in prepared.points if point not in points]
    suggestions = Suggestions(prepared, ended, under_way, fixed)
    inline = config.trial.runner == "inline"
    resources = {"CPU": config.trial.cpus, "GPU": config.trial.gpus} if inline else {"CPU": 0.01}
    trainable = tune.with_resources(
        tune.with_parameters(_trainable, plan=plan), {key: value for key, value in resources.items() if value}
    )
    place = storage.join(prepared.uri, TUNE)
    storage.remove(place)
    local = storage.is_local(place)
    path = place if local else storage.filesystem(place)[1]
    compat_ray.quiet_tune()
    tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=suggestions,
            scheduler=scheduler_of(config, base),
            num_samples=config.budget.trials - len(ended),
            max_concurrent_trials=config.search.concurrency,
            reuse_actors=inline and config.trial.reuse,
            time_budget_s=config.budget.seconds,
            trial_dirname_creator=_name,
            trial_name_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=path.rsplit("/", 1)[1],
            storage_path=path.rsplit("/", 1)[0],
            storage_filesystem=None if local else storage.arrow_filesystem(place),
            failure_config=tune.FailureConfig(max_failures=config.trial.retries),
            callbacks=[Reporter(on_end, on_report)],
            verbose=0,
        ),
    ).fit()


def _under_way(sweep_uri: str) -> dict[int, dict[str, Any]]:
    """Settings of the trials that were begun and have not ended, by number; what is left of one whose
    settings nobody knows is removed."""
    under_way = {}
    for name in sorted(storage.listing(storage.join(sweep_uri, "trials"))):
        place = storage.join(sweep_uri, "trials", name)
        if storage.exists(storage.join(place, TRIAL)):
            continue
        if storage.exists(storage.join(place, SETTINGS)):
            under_way[int(name)] = storage.read_json(storage.join(place, SETTINGS))
        else:
            storage.remove(place)
    return under_way


class Suggestions(OptunaSearch):
    """Optuna's suggestions as {"number", "settings"}, as long as a whole trial fits into the budget of
    steps."""

    def __init__(
        self,
        prepared: "PreparedSweep",
        ended: list[Row],
        under_way: Mapping[int, dict[str, Any]],
        points: list[dict[str, Any]],
    ) -> None:
        config = prepared.config
        trials = optuna.storages.InMemoryStorage()
        study = study_of(config, ended, [*under_way.values(), *points], storage=trials)
        directions = [scores.OBJECTIVES[name].direction for name in config.search.objectives]
        super().__init__(
            distributions(config.space),
            metric=[_metric(index) for index in range(len(directions))],
            mode=["min" if direction == "minimize" else "max" for direction in directions],
            sampler=study.sampler,
            study_name=study.study_name,
            storage=trials,
        )
        numbers = {row["number"] for row in ended} | under_way.keys()
        free = [number for number in range(config.budget.trials + len(numbers)) if number not in numbers]
        self._uri, self._axes, self._numbers = prepared.uri, config.space, [*under_way, *free]
        self._budget, self._max_steps = config.budget.steps, prepared.base.config.optim.max_steps
        self._spent = sum(int(row["step"] or 0) for row in ended)
        self._running = 0

    def suggest(self, trial_id: str) -> Any:
        steps = self._spent + (self._running + 1) * self._max_steps  # trials that still run count in full
        if self._budget is not None and steps > self._budget:
            return None if self._running else Searcher.FINISHED
        coordinates = super().suggest(trial_id)
        assert coordinates is not None
        number, settings = self._numbers.pop(0), settings_at(self._axes, coordinates)
        self._running += 1
        storage.write_json(storage.join(trial_uri(self._uri, number), SETTINGS), settings)
        return {"number": number, "settings": settings, "suggested_at": time.time()}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._running -= 1
        self._spent += int((result or {}).get("step") or 0)
        broken = not result or result.get(_metric(0)) is None
        super().on_trial_complete(trial_id, None if broken else result, error=error or broken)


def _metric(index: int) -> str:
    return f"objective_{index}"


def _trainable(config: dict[str, Any], plan: dict[str, Any]) -> None:
    def report(standing: dict[str, Any]) -> None:
        values = standing["values"] or [None] * len(plan["objectives"])
        tune.report(standing | {_metric(index): value for index, value in enumerate(values)})

    compat_ray.quiet_data()
    run_and_report(config["number"], config["settings"], plan, report)


class Reporter(tune.Callback):
    """Hands the driver what Tune says of trials: every report, and every trial's row when it has ended."""

    def __init__(self, on_end: Callable[[Row], None], on_report: Callable[[dict[str, Any]], None]) -> None:
        self._on_end, self._on_report = on_end, on_report

    def __getstate__(self) -> dict[str, Any]:  # Tune notes its callbacks; nobody reads them again
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if not result["finished"]:
            self._on_report(result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._on_end(_row(trial, None))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # Tune writes the error here first; what it finds in storage may not have got there yet
        file = Path(trial.error_file) if trial.error_file else None
        staged = file.read_text() if file and file.exists() else ""
        cause = trial.get_pickled_error() or trial.get_error() or staged
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        self._on_end(_row(trial, lines[-1][:600] if lines else "no reason given"))


def _row(trial: Any, error: str | None) -> Row:
    """A trial as the table has it; `error`: why it gave up after its retries."""
    last = trial.last_result or {}
    failure = error or last.get("failed")
    status = scores.FAILED if failure else scores.FINISHED if last.get("finished") else scores.STOPPED
    keys = ("step", "held", "settled_step", "first_crossing_step", "after")
    return {
        "number": trial.config["number"],
        "settings": dict(trial.config["settings"]),
        "status": status,
        "reason": failure,
        "attempts": trial.num_failures + (error is None),
        "values": None if failure else last.get("values"),
        "gate_passed": bool(last.get("gate_passed")),
        "seconds": {**(last.get("seconds") or {}), "wall": time.time() - trial.config["suggested_at"]},
        **{key: last.get(key) for key in keys},
    }


def _name(trial: Any) -> str:
    return f"{trial.config['number']:03d}-{trial.trial_id[-6:]}"


def scheduler_of(config: SweepConfig, base: UnlearnConfig) -> Any:
    """Tune's scheduler on the settled measure; a trial at its last step is never stopped, since its end is
    still to be measured."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule

    settings = config.scheduler
    common: dict[str, Any] = {
        "time_attr": "step",
        "metric": "held",
        "mode": "min",
        "grace_period": settings.grace_steps or base.evaluate.patience_steps,
    }
    if settings.kind == "asha":
        max_t = base.optim.max_steps + 1
        return ASHAScheduler(max_t=max_t, reduction_factor=settings.reduction, **common)
    if settings.kind == "median":
        return MedianStoppingRule(min_samples_required=settings.min_trials, hard_stop=True, **common)
    return FIFOScheduler()
