"""A worker's step times by phase: `<run>/timings/rank-N.jsonl` and Ray metrics (ray_unlearn_* where
Prometheus scrapes the cluster)."""

from typing import Any

from pipeline import storage
from pipeline.runtime import metrics_log

EVERY_S = 10.0  # the file is written whole each time
PHASES = ("data", "forward", "gradients", "reduce", "second_order", "optimiser", "evaluation", "checkpoint")


class Timings:
    """Called with a step's seconds. A continued run keeps the lines up to its checkpoint."""

    def __init__(self, run_uri: str, run_id: str, rank: int, world_size: int, start_step: int | None) -> None:
        from ray.util.metrics import Counter, Gauge

        uri = storage.join(run_uri, "timings", f"rank-{rank}.jsonl")
        records = [] if start_step is None else [r for r in metrics_log.read(uri) if r["step"] <= start_step]
        self._writer = metrics_log.Writer(uri, records, every_s=EVERY_S)
        self._who = {"run_id": run_id, "rank": rank, "world": world_size}
        tags = {"run": run_id, "rank": str(rank)}
        self._seconds = Counter(
            "unlearn_phase_seconds",
            description="seconds of a worker by phase of its steps",
            tag_keys=("run", "rank", "phase"),
        )
        self._seconds.set_default_tags(tags)
        self._steps = Counter("unlearn_steps", description="steps taken", tag_keys=("run", "rank"))
        self._step = Gauge("unlearn_step", description="the step a worker is at", tag_keys=("run", "rank"))
        self._world_size = Gauge(
            "unlearn_workers", description="workers that train", tag_keys=("run", "rank")
        )
        for metric in (self._steps, self._step, self._world_size):
            metric.set_default_tags(tags)
        self._world_size.set(world_size)

    def __call__(self, seconds: dict[str, Any]) -> None:
        rounded = {
            name: round(value, 6) if isinstance(value, float) else value for name, value in seconds.items()
        }
        self._writer.write({**self._who, **rounded})
        self._steps.inc()
        self._step.set(seconds["step"])
        for name in PHASES:
            if seconds.get(name, 0) > 0:
                self._seconds.inc(seconds[name], tags={"phase": name})

    def flush(self) -> None:
        self._writer.flush()


class Quality:
    """The newest check as Ray metrics, from the rank that follows the checks."""

    def __init__(self, run_id: str) -> None:
        from ray.util.metrics import Gauge

        self._gauges = {
            name: Gauge(
                f"unlearn_{name.replace('/', '_')}",
                description=f"{name} at the newest check",
                tag_keys=("run",),
            )
            for name in ("forget_fraction", "membership_auc", "retain_accuracy/mean", "retain_accuracy/min")
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": run_id})

    def __call__(self, record: metrics_log.Record) -> None:
        for name, gauge in self._gauges.items():
            if record["kind"] == "evaluation" and record.get(name) is not None:
                gauge.set(record[name])
