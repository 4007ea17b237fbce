"""What the data benchmark does in processes of their own: workers that stream, and one that prepares, each
started fresh."""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray

from pipeline.benchmarks import data
from pipeline.data import retain_stream_local, retain_stream_ray
from pipeline.data.batch import Batch
from pipeline.data.partition import Partition
from pipeline.data.retain_stream import ahead, files_to_read


def consume(
    partition: Partition, workers: int, steps: int | None = None, reader: str = "plain"
) -> list[dict[str, float]]:
    """The retain side into `workers` processes at once: all of it as fast as it comes, or `steps` batches
    with a step on each."""
    remote = _fresh(_consume, num_cpus=0.5)
    return ray.get([remote.remote(partition, rank, workers, steps, reader) for rank in range(workers)])


def pil_loops(files: Sequence[str], cores: int) -> None:
    """The plain loop over `files`, shared out to `cores` processes."""
    remote: Any = ray.remote(num_cpus=1)(data.pil_loop)
    ray.get([remote.remote(files[core::cores]) for core in range(cores)])


def preparing_peak_mb(raw: str, root: str) -> float:
    return float(ray.get(_fresh(_prepare, num_cpus=1).remote(raw, root)))


def _fresh(function: Callable[..., Any], num_cpus: float) -> Any:
    """`function` in processes that did nothing before: Ray keeps idle ones and hands them out again, whose
    peaks are of earlier work."""
    return ray.remote(
        num_cpus=num_cpus, max_calls=1, runtime_env={"env_vars": {"UNLEARN_FRESH": uuid.uuid4().hex}}
    )(function)


def _memory_mb(field: str) -> float:
    """VmHWM: most ever resident, of this program alone (getrusage would count the one it was started from
    too). RssAnon: private now."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) / 1024


def stream(partition: Partition, rank: int, world_size: int, reader: str) -> Iterator[Batch]:
    """As a worker has it."""
    if reader == "ray":
        return retain_stream_ray.retain_stream(partition, rank, world_size)
    return ahead(retain_stream_local.retain_stream(partition, rank, world_size))


def _consume(
    partition: Partition, rank: int, world_size: int, steps: int | None, reader: str
) -> dict[str, float]:
    """`first`: seconds to the first batch of `first_rows`; `seconds`: all after it, of which `waiting` for
    batches; `step`: one step's.

    `peak_mb`: most private memory, `early_peak_mb` of the first half.
    """
    import torch

    torch.set_num_threads(1)
    step = data.step_of(partition) if steps else None
    figures = {
        "rows": 0.0,
        "first": 0.0,
        "first_rows": 0.0,
        "waiting": 0.0,
        "step": 0.0,
        "peak_mb": 0.0,
        "early_peak_mb": 0.0,
    }
    expected = sum(file.rows for file in files_to_read(partition, rank, world_size))
    waiting_since = time.perf_counter()
    first_at, count = waiting_since, 0
    for count, batch in enumerate(stream(partition, rank, world_size, reader), 1):
        now = time.perf_counter()
        if count == 1:
            figures |= {"first": now - waiting_since, "first_rows": float(len(batch))}
            first_at = now
        else:
            figures["waiting"] += now - waiting_since
        figures["rows"] += len(batch)
        if count % 50 == 1:  # what lies in the object store is the node's, and held to a bound of its own
            figures["peak_mb"] = max(figures["peak_mb"], _memory_mb("RssAnon"))
            if 2 * figures["rows"] <= expected:
                figures["early_peak_mb"] = figures["peak_mb"]
        if step is not None:
            step(batch)
        if count == steps:
            break
        waiting_since = time.perf_counter()
    figures["seconds"] = time.perf_counter() - first_at
    figures["step"] = (figures["seconds"] - figures["waiting"]) / max(1, count)
    return figures


def _prepare(raw: str, root: str) -> float:
    data.prepare_here(raw, root)
    return _memory_mb("VmHWM")
