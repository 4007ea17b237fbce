"""The retain side as each rank's part of every global batch: which files in which order, and their rows put
together and checked.

Global batch s is positions [s*B, (s+1)*B) of the stream; lane l holds b = B/lanes of them, from s*B + l*b on.
Rank r of W takes lanes r, r+W, ...: whatever W, the ranks together see the same rows.
"""

import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch

from pipeline.data import parquet_shards
from pipeline.data.batch import Batch, lanes_of
from pipeline.data.decode import batch_of, columns_of
from pipeline.data.partition import LaneFile, Partition
from pipeline.data.units import Units


def files_to_read(partition: Partition, rank: int, world_size: int, start_step: int = 0) -> list[LaneFile]:
    """The rank's files from the segment of `start_step` on, in the order `assemble` wants their rows: by
    segment, then by lane."""
    mine = set(lanes_of(partition.manifest.lanes, rank, world_size))
    first = start_step // partition.manifest.segment_steps
    return [file for file in partition.manifest.retain if file.lane in mine and file.segment >= first]


def assemble(
    partition: Partition, files: Sequence[LaneFile], tables: Iterator[pa.Table], start_step: int = 0
) -> Iterator[Batch]:
    """Steps from `start_step` on, made of `tables`: the rows of `files` in order, cut anywhere.

    Raises `RuntimeError` when a row is missing, repeated or out of place.
    """
    supply = _Supply(tables)
    for segment in sorted({file.segment for file in files}):
        lanes = [file for file in files if file.segment == segment]
        parts = [supply.take(file.rows, file.path) for file in lanes]
        first = segment * partition.manifest.segment_steps
        yield from batches_of(partition, lanes, parts, first, start_step)
    supply.require_empty(partition.uri)


def batches_of(
    partition: Partition, lanes: Sequence[LaneFile], tables: Sequence[pa.Table], first: int, start_step: int
) -> Iterator[Batch]:
    """The steps from `first` on whose rows `tables` hold, one table for each of `lanes`; none before
    `start_step`. Raises `RuntimeError` when a row is out of place."""
    manifest, b = partition.manifest, partition.lane_batch
    units, pinned = Units(manifest.scale, manifest.statistics), torch.cuda.is_available()
    steps = tables[0].num_rows // b
    for file, table in zip(lanes, tables, strict=True):
        starts = np.arange(first, first + steps) * manifest.batch_size + file.lane * b
        if not np.array_equal(
            parquet_shards.integers(table["position"]), (starts[:, None] + np.arange(b)).ravel()
        ):
            raise RuntimeError(
                f"{partition.uri}/{file.path}: rows came out of place; remove the partition and run again"
            )
    parts = [columns_of(table, manifest.kind, manifest.shape) for table in tables]
    for step in range(max(start_step - first, 0), steps):
        yield batch_of(parts, slice(step * b, (step + 1) * b), units, pinned=pinned)


def ahead(batches: Iterator[Batch], depth: int = 2) -> Iterator[Batch]:
    """The same batches, up to `depth` of them put together in a thread while an earlier one is trained on.

    What `batches` raises is raised in its place. Leaving off early ends the thread.
    """
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(depth)
    abandoned = threading.Event()

    def hand_over(item: Batch | BaseException | None) -> None:
        while not abandoned.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put(item, timeout=0.2)

    def fill() -> None:
        try:
            for batch in batches:
                hand_over(batch)
                if abandoned.is_set():
                    return
            hand_over(None)
        except BaseException as error:
            hand_over(error)

    threading.Thread(target=fill, daemon=True, name="batches").start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        abandoned.set()


class _Supply:
    """Rows on tap from tables of any size."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self.tables = tables
        self.left: pa.Table | None = None

    def take(self, count: int, name: str) -> pa.Table:
        parts: list[pa.Table] = []
        missing = count
        while missing:
            table = self.left if self.left is not None else next(self.tables, None)
            if table is None:
                raise RuntimeError(
                    f"{name}: the stream ended {missing} rows early; rows were lost on the way"
                )
            parts.append(table.slice(0, missing))
            self.left = table.slice(missing) if table.num_rows > missing else None
            missing -= parts[-1].num_rows
        return pa.concat_tables(parts)

    def require_empty(self, name: str) -> None:
        if self.left is not None or any(table.num_rows for table in self.tables):
            raise RuntimeError(f"{name}: the stream holds more rows than the manifest says")
