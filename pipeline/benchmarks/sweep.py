"""What a trial of a sweep costs beyond its steps and its evaluation, by the ways it may be run."""

import statistics
import tempfile
import time
import uuid
from typing import Any

from pipeline import storage
from pipeline.config import BenchmarkConfig, SweepConfig, parse

WAYS: dict[str, dict[str, Any]] = {
    "trainer": {"runner": "trainer"},  # the main job's TorchTrainer, started for every trial
    # the loop in the trial's own process, a new one for every trial
    "inline_cold": {"runner": "inline", "reuse": False},
    "inline_warm": {"runner": "inline", "reuse": True},  # the same process takes the next trial
}
DONE = [
    (
        "partition, base weights and the base model's metrics are made once and shared: base_measure_seconds"
        " saved in every trial"
    ),
    (
        "inline: the loop runs inside the trial's process, so no placement group, process group or stream of"
        " Ray Data is set up for it"
    ),
    (
        "warm: the process that finished a trial takes the next one, so Python, torch and the project are"
        " imported once per slot"
    ),
]


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Seconds per trial and way, one trial at a time; needs the lake and models of the quickstart under
    `storage`.

    overhead = wall from being suggested to having ended, less steps, less evaluation. `first` pays for what
    stays warm.
    """
    from pipeline.sweep import search

    report: dict[str, Any] = {
        "benchmark": "sweep",
        "steps_per_trial": config.sweep.max_steps,
        "trials_per_way": config.sweep.trials,
    }
    prepared = {way: search.check(_sweep(config, way)) for way in config.sweep.ways}
    for way, one in prepared.items():
        report[way] = _measured(one)
    report["base_measure_seconds"] = report[config.sweep.ways[0]].pop("base_measure_seconds")
    for way in config.sweep.ways[1:]:
        report[way].pop("base_measure_seconds")
    if {"trainer", "inline_warm"} <= set(config.sweep.ways):
        report["trainer_over_inline_warm"] = (
            report["trainer"]["overhead_seconds"] / report["inline_warm"]["overhead_seconds"]
        )
    return {**report, "done": DONE}


def _sweep(config: BenchmarkConfig, way: str) -> SweepConfig:
    """A short sweep of the quickstart's request, under a name that no other has."""
    evaluation = {
        "samples": 20,
        "retain_samples": 1,
        "final_samples": 100,
        "final_retain_samples": 1,
        "every": 2,
        "patience_steps": 100,
    }
    return parse(
        SweepConfig,
        {
            "storage": config.storage,
            "run_id": f"benchmark-{way.replace('_', '-')}-{uuid.uuid4().hex[:8]}",
            "base": config.sweep.base,
            "set": {
                "optim.max_steps": config.sweep.max_steps,
                "train.workers": 1,
                **{f"evaluate.{k}": v for k, v in evaluation.items()},
            },
            "space": {"method.penalty": {"loguniform": [1e-3, 1]}},
            "search": {"algorithm": "random", "concurrency": 1},
            "budget": {"trials": config.sweep.trials},
            "trial": WAYS[way],
        },
    )


def _measured(prepared: Any) -> dict[str, Any]:
    from pipeline.config import Tracking
    from pipeline.runtime import cluster_ray
    from pipeline.sweep import search
    from pipeline.sweep.search_ray import make_plan
    from pipeline.tracking.mlflow_runs import Tracker

    cluster_ray.connect(dashboard=True)
    with tempfile.TemporaryDirectory() as folder:
        tracking = Tracking(uri=f"sqlite:///{folder}/mlflow.db")
        with Tracker(tracking=tracking, storage_root=folder, run_id=prepared.sweep_id) as parent:
            try:
                plan = make_plan(prepared)
                started = time.perf_counter()
                rows = search.run_trials(prepared, plan, parent)
                seconds = time.perf_counter() - started
            finally:
                storage.remove(prepared.uri)
    finished = [row for row in rows if row["status"] == "finished"]
    if len(finished) < len(rows):
        raise RuntimeError(
            f"{len(rows) - len(finished)} of {len(rows)} trials failed:"
            f" {[row['reason'] for row in rows if row['reason']][:1]}"
        )
    over = [row["seconds"]["wall"] - row["seconds"]["steps"] - row["seconds"]["evaluation"] for row in rows]
    later = over[1:] or over
    return {
        "overhead_seconds": round(statistics.median(later), 2),
        "overhead_first_seconds": round(over[0], 2),
        "setup_seconds": _median([row["seconds"]["setup"] for row in rows]),
        "steps_seconds": _median([row["seconds"]["steps"] for row in rows]),
        "evaluation_seconds": _median([row["seconds"]["evaluation"] for row in rows]),
        "wall_seconds": _median([row["seconds"]["wall"] for row in rows]),
        "all_trials_seconds": round(seconds, 2),
        "base_measure_seconds": round(
            next(iter(plan["prepared"].values()))["before"]["record"]["seconds"], 2
        ),
    }


def _median(values: list[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return round(statistics.median(numbers), 2) if numbers else None
