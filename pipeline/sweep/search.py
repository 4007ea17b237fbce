"""The sweep on the driver: checked, its trials run, a winner that holds on fresh seeds, the page."""

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from pipeline import storage
from pipeline.config import SweepConfig, UnlearnConfig
from pipeline.config.conditions import at
from pipeline.errors import InputError
from pipeline.runs import preflight
from pipeline.runs.result import RESULT
from pipeline.runtime import metrics_log
from pipeline.runtime.code_version import code_version
from pipeline.runtime.progress import Progress
from pipeline.sweep import scores
from pipeline.sweep.space import (
    Settings,
    base_config,
    check_space,
    configured,
    fixed_points,
    importance,
    study_of,
)
from pipeline.sweep.trial import TRIAL, rows, trial_uri
from pipeline.training.run_folder import METRICS
from pipeline.training.worker_inputs import Sources

if TYPE_CHECKING:
    from pipeline.tracking.mlflow_runs import Tracker

SETTINGS, SUMMARY, PAGE = "config.yaml", "sweep.json", "sweep.html"


@dataclass(frozen=True, kw_only=True)
class PreparedSweep:
    """A sweep that was checked. `base` is the main job's check of the configuration that the trials start
    from."""

    config: SweepConfig
    sweep_id: str
    uri: str
    base: preflight.Prepared
    points: list[Settings]

    @property
    def shared(self) -> Sources:
        return Sources(**self.base.sources)


def check(config: SweepConfig) -> PreparedSweep:
    """Raise `InputError` for anything that would stop the sweep later."""
    base = base_config(config)
    check_space(config.space, base)
    scores.check_objectives(config.search.objectives, base)
    if config.budget.steps is not None and config.budget.steps < base.optim.max_steps:
        raise InputError(
            f"budget.steps: got {config.budget.steps}, less than one trial takes (optim.max_steps"
            f" {base.optim.max_steps}); raise it or set optim.max_steps"
        )
    prepared = preflight.check(base)
    _check_trainables(config, prepared)
    description = _described(config, prepared)
    sweep_id = config.run_id or f"sweep-{storage.digest_of(description)[:10]}"
    uri = storage.join(config.storage, "sweeps", sweep_id)
    _require_same(uri, sweep_id, description)
    return PreparedSweep(
        config=config, sweep_id=sweep_id, uri=uri, base=prepared, points=_points(config, prepared.config)
    )


def run(prepared: PreparedSweep) -> dict[str, Any]:
    """Do it, or what is left of it; returns the summary (sweep.json)."""
    from pipeline.runtime import cluster_ray
    from pipeline.sweep.search_ray import make_plan
    from pipeline.sweep.winner import choose
    from pipeline.tracking.compat import preload
    from pipeline.tracking.mlflow_runs import Tracker, flatten

    config, uri = prepared.config, prepared.uri
    if storage.exists(storage.join(uri, SUMMARY)):
        return storage.read_json(storage.join(uri, SUMMARY))
    started = time.perf_counter()
    storage.require_writable(config.storage)
    preload()
    inline, train = config.trial.runner == "inline", prepared.base.config.train
    needed = config.trial.cpus if inline else train.most * train.cpus_per_worker + 1
    # Ray Train frees its places by the State API
    cluster_ray.connect(max(os.cpu_count() or 1, math.ceil(needed)), dashboard=not inline)
    cluster_ray.require_shared(config.storage)
    if not storage.exists(storage.join(uri, SETTINGS)):
        storage.write_text(
            storage.join(uri, SETTINGS), yaml.safe_dump(_described(config, prepared.base), sort_keys=False)
        )
    tags = {"sweep": prepared.sweep_id, "request_id": str(prepared.base.config.request.id)}
    params = flatten(
        {
            "budget": config.budget.model_dump(),
            "search": config.search.model_dump(),
            "scheduler": config.scheduler.model_dump(),
        }
    )
    with Tracker(
        tracking=config.tracking,
        storage_root=config.storage,
        run_id=prepared.sweep_id,
        tags=tags,
        params=params,
        description=(
            f"A search of {config.budget.trials} trials over {', '.join(sorted(config.space))},"
            f" each of them {config.base} with other values; the best are verified on fresh seeds."
        ),
    ) as parent:
        plan = make_plan(prepared)
        table = run_trials(prepared, plan, parent)
        summary = summarise(prepared, table, time.perf_counter() - started)
        if not summary["ranking"]:
            reason = table[0]["reason"] if table else "none was started"
            raise RuntimeError(f"no trial finished: {reason}; the trials lie under {uri}")
        summary["winner"] = choose(prepared, plan, summary, parent)
        summary["seconds"]["total"] = time.perf_counter() - started
        _publish(prepared, summary, parent)
    return summary


def run_trials(prepared: PreparedSweep, plan: dict[str, Any], parent: "Tracker") -> list[dict[str, Any]]:
    """Every trial's row, in order, whatever an interruption left undone."""
    from pipeline.sweep.search_ray import search
    from pipeline.sweep.terminal import trial_line

    config = prepared.config
    ended = {row["number"] for row in rows(prepared.uri)}
    if ended:
        print(f"  {len(ended)} trials have ended before; they are not run again", flush=True)
    progress = Progress(f"{config.budget.trials} trials", config.budget.trials)
    logged = set[int]()

    def on_end(row: dict[str, Any]) -> None:
        storage.write_json(storage.join(trial_uri(prepared.uri, row["number"]), TRIAL), row)
        progress.line(f"  {trial_line(row, config.search.objectives)}")
        ended.add(row["number"])
        progress.at(len(ended))
        logged.add(row["number"])
        log_child(prepared, row, parent)

    def on_report(report: dict[str, Any]) -> None:
        progress.at(len(ended), f"trial {report['number']} step {report['step']}")

    search(prepared, plan, on_end, on_report)
    progress.close()
    table = rows(prepared.uri)
    for row in table:
        if row["number"] not in logged:
            log_child(prepared, row, parent)
    return table


def log_child(prepared: PreparedSweep, row: Mapping[str, Any], parent: "Tracker") -> None:
    """The trial's run in MLflow, under the sweep's: its settings, its curves, its result.json."""
    from pipeline.tracking.mlflow_runs import Tracker

    uri = trial_uri(prepared.uri, row["number"])
    result = trial_result(prepared, row)
    storage.write_json(storage.join(uri, RESULT), result)
    tags = {
        "mlflow.parentRunId": parent.mlflow_run_id,
        "sweep": prepared.sweep_id,
        "status": row["status"],
        "reason": row["reason"],
    }
    child = Tracker(
        tracking=prepared.config.tracking,
        storage_root=prepared.config.storage,
        run_id=result["run_id"],
        tags={key: value for key, value in tags.items() if value is not None},
        params=row["settings"],
    )
    with child:
        child.log_records(metrics_log.read(storage.join(uri, METRICS)))
        child.log_artifacts({RESULT: (json.dumps(result, indent=2) + "\n").encode()})
    if row["status"] == scores.FAILED:
        child.client.set_terminated(child.mlflow_run_id, status="FAILED")


def trial_result(prepared: PreparedSweep, row: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's result.json: its row, and what it was a trial of. Its metrics are those it was chosen by."""
    base = prepared.base
    config = base.config
    try:
        method = configured(config, row["settings"]).method
    except InputError:
        method = config.method
    return {
        "run_id": f"{prepared.sweep_id}-{row['number']:03d}",
        "sweep": prepared.sweep_id,
        "request": config.request.model_dump(mode="json"),
        "method": method.name,
        "method_config": method.model_dump(mode="json"),
        "base_digest": base.base.digest,
        "lake_digest": base.lake.digest,
        "seed": config.seed,
        **row,
    }


def summarise(prepared: PreparedSweep, table: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What came of the sweep: the table, the front, the ranking, what mattered, where the time went."""
    config, names = prepared.config, prepared.config.search.objectives
    study = study_of(config, table)
    default = {key: at(prepared.base.config, key) for key in config.space}
    return {
        "sweep_id": prepared.sweep_id,
        "request": prepared.base.config.request.model_dump(mode="json"),
        "class_names": [item.name for item in prepared.base.lake.manifest.classes],
        "objectives": names,
        "base": default,
        "default_trial": next((row["number"] for row in table if row["settings"] == default), None),
        "trials": table,
        "ranking": [row["number"] for row in scores.ranked(table, names)],
        "front": scores.front(table, names),
        "importance": {name: importance(study, index, config.seed) for index, name in enumerate(names)},
        "seconds": {"searched": seconds, **overheads(table)},
        "winner": None,
        "code_version": code_version(),
        "seed": config.seed,
    }


def overheads(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of trials: wall from being suggested to having ended, what steps and evaluation took of it, the
    rest."""
    timed = [
        row["seconds"] for row in rows if row["status"] == scores.FINISHED and row["seconds"].get("wall")
    ]
    over = sorted(seconds["wall"] - seconds["steps"] - seconds["evaluation"] for seconds in timed)
    return {
        "trials_timed": len(timed),
        "steps": sum(seconds["steps"] for seconds in timed),
        "evaluation": sum(seconds["evaluation"] for seconds in timed),
        "overhead_per_trial": over[len(over) // 2] if over else None,
        "overhead_first": next((s["wall"] - s["steps"] - s["evaluation"] for s in timed), None),
    }


def _publish(prepared: PreparedSweep, summary: dict[str, Any], parent: "Tracker") -> None:
    """sweep.html and, last, sweep.json: under the sweep and as the parent run's artifacts."""
    from pipeline.sweep.page import render_page

    base = prepared.base.config
    target = base.gate.max_forget_fraction if base.request.classes else base.gate.max_membership_auc
    page = render_page(
        summary,
        _checks(prepared, summary),
        yaml.safe_dump(_described(prepared.config, prepared.base), sort_keys=False),
        target=target,
        last_step=base.optim.max_steps,
    )
    table = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    files = {PAGE: page.encode(), SUMMARY: table.encode()}
    for name, data in files.items():
        storage.write_bytes(storage.join(prepared.uri, name), data)
    parent.log_artifacts(files)


def _checks(prepared: PreparedSweep, summary: dict[str, Any]) -> dict[int, list[metrics_log.Record]]:
    return {
        row["number"]: [
            r
            for r in metrics_log.read(storage.join(trial_uri(prepared.uri, row["number"]), METRICS))
            if r["kind"] == "evaluation"
        ]
        for row in summary["trials"]
    }


def _points(config: SweepConfig, base: UnlearnConfig) -> list[Settings]:
    return fixed_points(config.space, base) if config.search.include_base else []


def _check_trainables(config: SweepConfig, prepared: preflight.Prepared) -> None:
    from pipeline.unlearning.parameters import select

    distribution = config.space.get("trainable")
    for value in (distribution.choice or []) if distribution else []:
        try:
            select(prepared.model, value)
        except ValueError as error:
            raise InputError(f"space: {error}") from error


def _described(config: SweepConfig, base: preflight.Prepared) -> dict[str, Any]:
    """All that decides what the trials do: the sweep's settings, those they start from, what they read."""
    return {
        "sweep": config.model_dump(mode="json", exclude={"storage", "run_id", "tracking", "base", "set"}),
        "base": base.config.model_dump(mode="json", exclude={"storage", "run_id", "tracking"}),
        "digests": {"base": base.base.digest, "judge": base.judge.digest, "lake": base.lake.digest},
    }


def _require_same(uri: str, sweep_id: str, now: dict[str, Any]) -> None:
    """A sweep that exists goes on only with the settings it was begun with: trials of two kinds could not be
    compared."""
    from pipeline.tracking.mlflow_runs import flatten

    place = storage.join(uri, SETTINGS)
    if not storage.exists(place):
        return
    before, after = flatten(storage.read_yaml(place)), flatten(now)
    different = [
        f"{key} {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if different:
        more = f" and {len(different) - 5} more" if len(different) > 5 else ""
        raise InputError(
            f"run_id {sweep_id} was begun with other settings ({'; '.join(different[:5])}{more}); use them or"
            " another run_id"
        )
