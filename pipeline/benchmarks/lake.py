"""A lake of as many rows as one likes, simulated: what its manifest, the partition of a request and the rows
to forget in a worker cost in seconds, bytes read and memory.

The manifest names every shard; on disk there are two files of real rows, and links to them. So everything is
done and read as with a lake of that size, but for the disk, which finds the files in the system's memory.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.config import BenchmarkConfig, UnlearnConfig, parse
from pipeline.config.benchmark import LakeBenchmark
from pipeline.data import parquet_shards
from pipeline.data.cycle import Cycle
from pipeline.data.lake import MANIFEST, SCHEMA_VERSION, Class, Encoding, Manifest
from pipeline.data.parquet_shards import Shard
from pipeline.data.partition_ray import build_partition
from pipeline.data.tombstones import open_lake

LATENT = (4, 32, 32)
SHARD_ROWS = 2048
BOUNDS = {
    "partition_seconds": 60.0,
    "partition_peak_mb": 1000.0,
    "read_over_used": 10.0,
    "stored_side_peak_mb": 100.0,
}


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """The figures as one JSON value. Everything it writes is temporary."""
    settings, figures = config.lake, dict[str, float]()
    with tempfile.TemporaryDirectory() as root:
        simulate(f"{root}/lake", settings, config.seed)
        with _measured(figures, "manifest"):
            lake = open_lake(root, f"{root}/lake")
        with _measured(figures, "digest"):
            assert lake.digest
        request = {"classes": [1], "exchange": {1: 0}}
        optim = {"batch_size": settings.batch, "max_steps": settings.steps}
        unlearn = parse(UnlearnConfig, {"storage": root, "request": request, "optim": optim})
        with _measured(figures, "partition"):
            partition = build_partition(unlearn, lake)
        manifest = partition.manifest
        sides = sum(file.bytes for file in (*manifest.forget, *manifest.exchange))
        used = settings.steps * settings.batch * parquet_shards.row_bytes("latent", LATENT)
        for name, held_bytes in (("stored_side", 0), ("held_side", sides)):
            with _measured(figures, name):
                forget = Cycle(partition.side("forget", held_bytes), config.seed, "forget")
                for step in range(settings.steps):
                    forget.take(step, settings.batch, manifest.lanes, 0, 1)
        figures["sides_mb"] = sides / 1e6
        figures["used_mb"] = used / 1e6
        figures["read_over_used"] = (figures["partition_read_mb"] - sides / 1e6) / (used / 1e6)
    return {
        "benchmark": "lake",
        "shards": len(lake.manifest.shards),
        **{name: round(value, 2) for name, value in figures.items()},
        "bounds": BOUNDS,
        "setting": settings.model_dump(),
    }


def simulate(uri: str, settings: LakeBenchmark, seed: int) -> None:
    """A lake of latents at `uri` whose shards of one length are links to one file."""
    random = np.random.default_rng(seed)
    class_rows = settings.rows // settings.classes
    stored: dict[int, Shard] = {}
    shards = []
    for label in range(settings.classes):
        (Path(uri) / "data" / f"label={label:05d}").mkdir(parents=True)
        for part, start in enumerate(range(0, class_rows, SHARD_ROWS)):
            rows = min(SHARD_ROWS, class_rows - start)
            if rows not in stored:
                stored[rows] = _shard(uri, rows, random)
            path = f"data/label={label:05d}/part-{part:05d}.parquet"
            (Path(uri) / path).symlink_to(Path(uri) / stored[rows].path)
            shards.append(stored[rows].model_copy(update={"path": path, "label": label}))
    manifest = Manifest(
        name="benchmark",
        schema_version=SCHEMA_VERSION,
        kind="latent",
        shape=list(LATENT),
        classes=[
            Class(label=label, name=str(label), train_rows=class_rows, heldout_rows=0)
            for label in range(settings.classes)
        ],
        shards=shards,
        source={},
        preprocessing={},
        encoder=Encoding(kind="autoencoder_kl", digest="0" * 64, scale=0.18215),
    )
    storage.write_json(storage.join(uri, MANIFEST), manifest.model_dump(mode="json"))


def _shard(uri: str, rows: int, random: np.random.Generator) -> Shard:
    values = parquet_shards.tensor_array(random.normal(0, 1, (rows, *LATENT)).astype(np.float16), "latent")
    ids = [f"n00000000_{number:06d}" for number in range(rows)]
    columns = [ids, pa.array([0] * rows, pa.int32()), values, values]
    table = pa.table(columns, schema=parquet_shards.schema("latent", LATENT))
    return parquet_shards.write(
        uri, f"rows-{rows}.parquet", [table], "latent", LATENT, label=0, split="train"
    )


@contextmanager
def _measured(figures: dict[str, float], name: str) -> Iterator[None]:
    """Into `figures`: seconds, CPU seconds, MB that this process read (from files or from what the system
    holds of them), and MB that it took at most beyond what it had."""
    Path("/proc/self/clear_refs").write_text("5")  # the most from now on
    before, read, cpu, started = _status("VmRSS"), _read_bytes(), time.process_time(), time.perf_counter()
    yield
    figures[f"{name}_seconds"] = time.perf_counter() - started
    figures[f"{name}_cpu_seconds"] = time.process_time() - cpu
    figures[f"{name}_read_mb"] = (_read_bytes() - read) / 1e6
    figures[f"{name}_peak_mb"] = (_status("VmHWM") - before) / 1e6


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def _read_bytes() -> int:
    return int(Path("/proc/self/io").read_text().splitlines()[0].split()[1])
