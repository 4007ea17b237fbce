"""Lake -> partition, as Ray tasks: gather the wanted rows shard by shard, deal them out by position, write
the lanes.

A partition smaller than one task's worth is made in this process by the same functions: starting workers
would cost more than the work.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.config import UnlearnConfig
from pipeline.data import parquet_shards, sparse_rows, stand_ins
from pipeline.data.lake import MANIFEST, Lake
from pipeline.data.parquet_shards import Kind, Shard
from pipeline.data.partition import (
    SCHEMA_VERSION,
    LaneFile,
    Manifest,
    Partition,
    find_partition,
    partition_key,
)
from pipeline.data.selection import Selection, exchange_labels, read_sample_ids, selections, without
from pipeline.data.stand_ins import StandIns
from pipeline.data.stream_order import computed_order, sorted_order
from pipeline.runtime.progress import Progress

TASK_BYTES = 128 << 20  # rows one task gathers or writes
READERS = 16  # files a task reads rows from at once: a store answers each request after some 30 ms
COPIERS = 4  # whole files in memory at once


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the stream is cut: what a task needs to name and fill the lane files."""

    root: str
    kind: Kind
    shape: tuple[int, ...]
    lanes: int
    batch_size: int
    steps: int
    segment_steps: int

    @property
    def segment_rows(self) -> int:
        return self.segment_steps * self.batch_size


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """From one shard: its rows at `rows` (they repeat when the stream has several passes)
    go to `positions`."""

    root: str
    shard: Shard
    rows: np.ndarray
    positions: np.ndarray


def build_partition(
    config: UnlearnConfig,
    lake: Lake,
    neighbours: Sequence[int] | None = None,
    sampled: StandIns | None = None,
    *,
    task_bytes: int = TASK_BYTES,
) -> Partition:
    """The partition of `config.request` from `lake`; a complete one with the same content is returned as it
    is.

    `neighbours`: the classes that retain policy `neighbours` keeps. `sampled`: rows that stand in for those
    of purged classes. Raises `InputError` for a request the lake cannot serve.
    """
    request = config.request
    sample_ids = read_sample_ids(request)
    key = partition_key(config, lake, sample_ids, neighbours, sampled)
    digest = storage.digest_of(key)
    uri = _uri(config.storage, digest)
    # one of a large lake that was made before there was another order goes on to be used
    earlier = storage.digest_of({name: value for name, value in key.items() if name != "order"})
    for address in dict.fromkeys((uri, _uri(config.storage, earlier))):
        if (existing := find_partition(address)) is not None:
            return existing

    forget, retain, labels = selections(config, lake, sample_ids, neighbours)
    batch_size, lanes = config.optim.batch_size, config.partition.lanes
    layout = Layout(
        root=uri,
        kind=lake.manifest.kind,
        shape=tuple(lake.manifest.shape),
        lanes=lanes,
        batch_size=batch_size,
        steps=key["steps"],
        segment_steps=key["segment_steps"],
    )
    order = stream_order(retain, layout.steps * batch_size, config.seed, computed="order" in key)
    lane_files, retain_opened = write_retain(placed(lake, retain, order), layout, task_bytes)
    forget_files, forget_opened = write_side(lake, forget, "forget", layout)
    facts = None
    if sampled is not None:
        files, facts = stand_ins.write(uri, sampled, layout.kind, layout.shape)
        forget_files += files
    exchange = without(lake, lake.shards(exchange_labels(request)), forget) if request.exchange else []
    exchange_files, exchange_opened = write_side(lake, exchange, "exchange", layout)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        digest=digest,
        key=key,
        kind=layout.kind,
        shape=list(layout.shape),
        scale=lake.manifest.encoder.scale,
        statistics=lake.manifest.encoder.statistics,
        lanes=lanes,
        batch_size=batch_size,
        steps=layout.steps,
        segment_steps=layout.segment_steps,
        retain_labels=labels,
        retain_rows=sum(item.count for item in retain),
        retain=lane_files,
        forget=forget_files,
        exchange=exchange_files,
        opened={"retain": retain_opened, "forget": forget_opened, "exchange": exchange_opened},
        stand_ins=facts,
    )
    storage.write_json(storage.join(uri, MANIFEST), manifest.model_dump(mode="json"))
    return Partition(uri=uri, manifest=manifest)


def _uri(root: str, digest: str) -> str:
    return storage.join(root, "partitions", digest[:32])


def stream_order(retain: Sequence[Selection], total: int, seed: int, *, computed: bool) -> np.ndarray:
    """(total,) indices into the rows of `retain`, one item after the other: position p holds row order[p]."""
    labels, counts = [item.shard.label for item in retain], [item.count for item in retain]
    if not computed:
        return sorted_order(np.repeat(labels, counts), total, seed)
    class_rows = np.bincount(np.unique(labels, return_inverse=True)[1], counts)
    return computed_order(class_rows.astype(int).tolist(), total, seed)


def write_retain(
    placements: Sequence[Wanted], layout: Layout, task_bytes: int
) -> tuple[list[LaneFile], dict[str, int]]:
    """Shuffle the retained rows into lane files: gather tasks split their rows by bucket, write tasks join
    one bucket each."""
    total = layout.steps * layout.batch_size
    row_bytes = parquet_shards.row_bytes(layout.kind, layout.shape)
    bucket_segments = max(1, task_bytes // (layout.segment_rows * row_bytes))
    edges = [*range(0, total, bucket_segments * layout.segment_rows), total]
    tasks = parquet_shards.chunked(
        placements, [len(item.rows) * row_bytes for item in placements], task_bytes
    )
    if len(tasks) == 1 and len(edges) == 2:
        *buckets, group_counts = gather(tasks[0], edges, layout)
        parts, counts = [write_lanes(layout, edges[0], edges[1], *buckets)], [group_counts]
    else:
        parts, counts = _shuffle_on_ray(tasks, edges, layout)
    files = sorted((file for part in parts for file in part), key=lambda file: (file.segment, file.lane))
    parquet_shards.require_rows(storage.join(layout.root, "retain"), sum(file.rows for file in files), total)
    return files, {path: groups for part in counts for path, groups in part.items()}


def placed(lake: Lake, retain: Sequence[Selection], order: np.ndarray) -> list[Wanted]:
    """Per shard, which of its rows go where; shards that give no row are left out."""
    positions = np.argsort(order, kind="stable")
    candidates = order[positions]
    starts = np.cumsum([0, *(item.count for item in retain)])
    result = []
    for item, start, (low, high) in zip(retain, starts, pairwise(np.searchsorted(candidates, starts))):
        rows = candidates[low:high] - start
        if item.rows is not None:
            rows = item.rows[rows]
        if len(rows):
            result.append(Wanted(root=lake.uri, shard=item.shard, rows=rows, positions=positions[low:high]))
    return result


def gather(placements: Sequence[Wanted], edges: Sequence[int], layout: Layout) -> list[Any]:
    """One table per bucket between `edges`, then the row groups that were read of each shard."""
    parts: list[list[pa.Table]] = [[] for _ in edges[1:]]
    group_counts = {}

    def read(item: Wanted) -> tuple[pa.Table, int]:
        return sparse_rows.read(item.root, item.shard, np.unique(item.rows), layout.kind, layout.shape)

    with ThreadPoolExecutor(min(READERS, len(placements))) as pool:
        for item, (table, group_counts[item.shard.path]) in zip(placements, pool.map(read, placements)):
            index = np.unique(item.rows, return_inverse=True)[1]
            # rows increase, and equal rows go by position
            draw = np.arange(len(index)) - np.searchsorted(item.rows, item.rows)
            for bucket, (low, high) in enumerate(pairwise(edges)):
                here = np.flatnonzero((item.positions >= low) & (item.positions < high))
                if len(here):
                    rows = table.take(pa.array(index[here]))
                    rows = rows.append_column("position", pa.array(item.positions[here], pa.int64()))
                    parts[bucket].append(rows.append_column("draw", pa.array(draw[here], pa.int32())))
    return [*(pa.concat_tables(part) if part else None for part in parts), group_counts]


def write_lanes(layout: Layout, low: int, high: int, *buckets: pa.Table | None) -> list[LaneFile]:
    """Write the lane files of stream positions [low, high) from the tables gathered for them."""
    tables = [table for table in buckets if table is not None]
    positions = np.concatenate([parquet_shards.integers(table["position"]) for table in tables])
    order = np.argsort(positions)
    if not np.array_equal(positions[order], np.arange(low, high)):
        raise RuntimeError(
            f"{layout.root}: stream positions {low}..{high} were gathered incompletely; make the lake again"
        )
    rows = pa.concat_tables(tables).take(pa.array(order))
    columns = parquet_shards.schema(layout.kind, layout.shape, streamed=True)
    lane_batch = layout.batch_size // layout.lanes
    group = max(lane_batch, parquet_shards.group_rows(layout.kind, layout.shape) // lane_batch * lane_batch)
    files = []
    for start in range(low, high, layout.segment_rows):
        here = (
            np.arange(start, min(start + layout.segment_rows, high)).reshape(-1, layout.lanes, lane_batch)
            - low
        )
        for lane in range(layout.lanes):
            table = rows.take(pa.array(here[:, lane].ravel()))
            data = parquet_shards.encode([table.select(columns.names)], columns, group)
            segment = start // layout.segment_rows
            path = f"retain/segment-{segment:05d}/lane-{lane:05d}.parquet"
            storage.write_bytes(storage.join(layout.root, path), data)
            files.append(
                LaneFile(
                    path=path,
                    segment=segment,
                    lane=lane,
                    rows=table.num_rows,
                    bytes=len(data),
                    sha256=storage.sha256(data),
                )
            )
    return files


def write_side(
    lake: Lake, selected: Sequence[Selection], side: str, layout: Layout
) -> tuple[list[Shard], dict[str, int]]:
    """Copy the selected rows into `<side>/`, one file per shard of the lake; these sides are small enough for
    a worker's memory."""

    def copied(item: Selection) -> tuple[Shard, int]:
        path = f"{side}/{item.shard.path.removeprefix('data/').replace('/', '-')}"
        if item.rows is None:
            return parquet_shards.copy(lake.uri, item.shard, layout.root, path)
        table, groups = parquet_shards.read_rows(lake.uri, item.shard, item.rows)
        file = parquet_shards.write(
            layout.root, path, [table], layout.kind, layout.shape, label=item.shard.label, split="train"
        )
        parquet_shards.require_rows(storage.join(layout.root, path), file.rows, item.count)
        return file, groups

    with ThreadPoolExecutor(COPIERS) as pool:
        copies = list(pool.map(copied, selected))
    return [file for file, _ in copies], {
        item.shard.path: groups for item, (_, groups) in zip(selected, copies, strict=True)
    }


def _shuffle_on_ray(
    tasks: Sequence[Sequence[Wanted]], edges: Sequence[int], layout: Layout
) -> tuple[list[list[LaneFile]], list[dict[str, int]]]:
    import ray

    from pipeline.runtime import cluster_ray

    cluster_ray.connect()
    gathering: Any = ray.remote(gather).options(num_returns=len(edges))
    writing: Any = ray.remote(write_lanes)
    bucket_tables = [gathering.remote(task, edges, layout) for task in tasks]
    pending = [
        writing.remote(layout, low, high, *(part[bucket] for part in bucket_tables))
        for bucket, (low, high) in enumerate(pairwise(edges))
    ]
    counts = [part[-1] for part in bucket_tables]
    del bucket_tables  # a gathered table is freed once its bucket is written
    files = []
    with Progress("writing the partition", len(pending)) as progress:
        while pending:
            ready, pending = ray.wait(pending, num_returns=1)
            with cluster_ray.plain_errors():
                files += ray.get(ready)
            progress.add(len(ready))
    return files, ray.get(counts)
