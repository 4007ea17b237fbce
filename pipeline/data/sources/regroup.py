"""Parquet files regrouped by class, for sources whose classes are scattered over files too large to read once
per shard."""

import hashlib
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.data.sources.base import Item
from pipeline.data.sources.parquet import LARGEST_READ, decoded, image_column
from pipeline.errors import InputError

REREAD_BYTES = 16 << 30  # what reading shard by shard may cost before the files are regrouped first


@dataclass(frozen=True, kw_only=True)
class Regrouping:
    """One file to copy: its `rows` in their new order, `sizes` of them to each row group."""

    source: str
    target: str
    rows: np.ndarray
    sizes: tuple[int, ...]


def reread_bytes(items_by_shard: Sequence[Sequence[Item]]) -> int:
    """About how much is read when each shard reads the row groups that hold its images: every group once per
    shard that needs it."""
    groups: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    total = 0
    for items in items_by_shard:
        rows_by_group: dict[str, list[int]] = defaultdict(list)
        for item in items:
            file, _, row = item.ref.rpartition("#")
            rows_by_group[file].append(int(row))
        for file, rows in rows_by_group.items():
            if file not in groups:
                groups[file] = _groups(file)
            ends, sizes = groups[file]
            total += int(sizes[np.unique(np.searchsorted(ends, rows, side="right"))].sum())
    return total


def plan_regrouping(items: Sequence[Item], folder: str) -> tuple[list[Regrouping], list[Item]]:
    """The copies to make under `folder`, each file's rows by class and a row group per class, and `items` as
    they are found there."""
    by_file: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        by_file[item.ref.rpartition("#")[0]].append(index)
    plans, moved = [], list(items)
    for file, members in by_file.items():
        members.sort(key=lambda index: (items[index].label, items[index].split, items[index].sample_id))
        target = storage.join(folder, f"{hashlib.sha256(file.encode()).hexdigest()[:24]}.parquet")
        _, sizes = np.unique([items[index].label for index in members], return_counts=True)
        rows = np.array([int(items[index].ref.rpartition("#")[2]) for index in members])
        plans.append(Regrouping(source=file, target=target, rows=rows, sizes=tuple(sizes.tolist())))
        for place, index in enumerate(members):
            moved[index] = replace(items[index], ref=f"{target}#{place}")
    return plans, moved


def regroup(plan: Regrouping) -> int:
    """Make one copy, unless an earlier run made it. Returns its rows; one source file is
    in memory at a time."""
    if not storage.exists(plan.target):
        data = storage.read_bytes(plan.source)
        parquet = pq.ParquetFile(pa.BufferReader(data))
        column = f"{image_column(parquet.schema_arrow, plan.source)}.bytes"
        batches, size = [], 0
        for batch in decoded(parquet, range(parquet.num_row_groups), [column]):
            batches.append(batch)
            size += batch.nbytes
            if size > max(LARGEST_READ, 8 * len(data)):
                raise InputError(
                    f"source: the images of {plan.source}, a file of {len(data)} bytes, take more than {size}"
                    " in memory, which are no images; fetch it again"
                )
        image = pa.Table.from_batches(batches)
        sink = io.BytesIO()
        with pq.ParquetWriter(
            sink, image.schema, compression="none", use_dictionary=False, write_statistics=False
        ) as writer:
            first = 0
            for size in plan.sizes:
                writer.write_table(image.take(pa.array(plan.rows[first : first + size])))
                first += size
        storage.write_bytes(plan.target, sink.getvalue())
    return len(plan.rows)


def _groups(file: str) -> tuple[np.ndarray, np.ndarray]:
    """The end row and the bytes of each row group."""
    fs, path = storage.filesystem(file)

    def call() -> pq.FileMetaData:
        with fs.open(path, "rb", cache_type="none") as raw:
            return pq.read_metadata(raw)

    metadata = storage.retrying(file, "read", call)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return np.cumsum([group.num_rows for group in groups]), np.array(
        [group.total_byte_size for group in groups]
    )
