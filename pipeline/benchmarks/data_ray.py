"""What the data benchmark does in processes of their own: workers that stream, and one that prepares, each started fresh."""

import resource
import time
from collections.abc import Sequence
from typing import Any

import ray

from pipeline.benchmarks import data
from pipeline.data import stream_ray
from pipeline.data.partition import Partition


def consume(partition: Partition, workers: int, steps: int | None = None) -> list[dict[str, float]]:
    """The retain side into `workers` processes at once: all of it as fast as it comes, or `steps` batches with a step on each."""
    remote: Any = ray.remote(num_cpus=0.5, max_calls=1)(_consume)
    return ray.get([remote.remote(partition, rank, workers, steps) for rank in range(workers)])


def pil_loops(files: Sequence[str], cores: int) -> None:
    """The plain loop over `files`, shared out to `cores` processes."""
    remote: Any = ray.remote(num_cpus=1)(data.pil_loop)
    ray.get([remote.remote(files[core::cores]) for core in range(cores)])


def preparing_peak_mb(raw: str, root: str) -> float:
    remote: Any = ray.remote(num_cpus=1, max_calls=1)(_prepare)
    return float(ray.get(remote.remote(raw, root)))


def _consume(partition: Partition, rank: int, world: int, steps: int | None) -> dict[str, float]:
    """`first`: seconds to the first batch of `first_rows`; `seconds`: all after it, of which `waiting` for batches; `step`: one step's."""
    import torch

    torch.set_num_threads(1)
    step = data.step_of(partition) if steps else None
    found = {"rows": 0.0, "first": 0.0, "first_rows": 0.0, "waiting": 0.0, "step": 0.0}
    asked = time.perf_counter()
    came, count = asked, 0
    for count, batch in enumerate(stream_ray.retain_stream(partition, rank, world), 1):
        now = time.perf_counter()
        if count == 1:
            found |= {"first": now - asked, "first_rows": float(len(batch))}
            came = now
        else:
            found["waiting"] += now - asked
        found["rows"] += len(batch)
        if step is not None:
            step(batch)
        if count == steps:
            break
        asked = time.perf_counter()
    found["seconds"] = time.perf_counter() - came
    found["step"] = (found["seconds"] - found["waiting"]) / max(1, count)
    return found | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _prepare(raw: str, root: str) -> float:
    data.prepare_here(raw, root)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
