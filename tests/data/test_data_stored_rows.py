"""A side read from its files row by row gives what one in memory gives, to the bit."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.data import parquet_shards
from pipeline.data.batch import Batch, Side
from pipeline.data.cycle import Cycle
from pipeline.data.decode import read_batch
from pipeline.data.parquet_shards import Kind, Shard
from pipeline.data.partition_ray import build_partition
from pipeline.data.stored_rows import StoredRows, open_rows
from pipeline.data.units import Units
from pipeline.unlearning.noising import exchange_rows

BATCH, LANES, SEED = 16, 4, 3
UNITS = Units(0.5)


def written(root: Path, kind: Kind, shape: tuple[int, ...]) -> list[Shard]:
    """Two files of 70 and 50 rows, of classes 2 and 5."""
    random, files = np.random.default_rng(0), []
    for label, rows in ((2, 70), (5, 50)):
        tensors = [
            parquet_shards.tensor_array(random.integers(0, 256, (rows, *shape)), kind)
            for _ in parquet_shards.tensor_columns(kind)
        ]
        ids = [f"{label}-{number}" for number in range(rows)]
        columns = [pa.array(ids), pa.array([label] * rows, pa.int32()), *tensors]
        table = pa.table(columns, schema=parquet_shards.schema(kind, shape))
        place = {"label": label, "split": "train"}
        files.append(parquet_shards.write(str(root), f"{label}.parquet", [table], kind, shape, **place))
    return files


def require_same(a: Batch, b: Batch) -> None:
    assert (a.sample_id, a.occurrence, a.units) == (b.sample_id, b.occurrence, b.units)
    assert torch.equal(a.y, b.y) and a.y.dtype == b.y.dtype
    for one, other in zip(a.stored, b.stored, strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype and one.stride() == other.stride()


def require_same_cycles(held: Side, stored: Side) -> None:
    """The same rows at every step at every world size, and where a run goes on at a later step."""
    for world_size in (1, 2, 4):
        for rank in range(world_size):
            place = (BATCH, LANES, rank, world_size)
            a, b = Cycle(held, SEED, "forget"), Cycle(stored, SEED, "forget")
            for step in (0, 1, 2, 7, 8):
                require_same(a.take(step, *place), b.take(step, *place))


@pytest.mark.parametrize(
    ("kind", "shape", "by_bytes"),
    [("latent", (4, 8, 8), True), ("image", (24, 20, 3), True), ("image", (2, 2, 1), False)],
)
def test_stored_rows_are_those_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, shape: tuple[int, ...], by_bytes: bool
) -> None:
    monkeypatch.setattr(parquet_shards, "ROW_GROUP_BYTES", 20 * parquet_shards.row_bytes(kind, shape))
    files = written(tmp_path, kind, shape)
    if not by_bytes:
        monkeypatch.setattr("pipeline.data.sparse_rows._offsets", lambda *rest: None)
    held = read_batch(str(tmp_path), files, kind, shape, UNITS)
    stored = open_rows(str(tmp_path), files, kind, shape, UNITS)
    assert all((file.offsets is not None) == by_bytes for file in stored.files)
    assert stored.sample_id == held.sample_id and torch.equal(stored.y, held.y)
    for index in ([], [119], [3, 3, 70, 69, 0], slice(60, 80)):
        require_same(held.take(index), stored.take(index))
    require_same_cycles(held, stored)
    mixture = {0: [5], 1: [2, 5]}  # every row of class 5 twice
    shown = exchange_rows(stored, mixture)
    assert isinstance(shown, StoredRows) and len(shown) == 170
    require_same_cycles(exchange_rows(held, mixture), shown)


def test_a_side_stays_in_its_files_where_it_is_larger_than_it_may_be(unlearn_config, digits_lake) -> None:
    partition = build_partition(unlearn_config(), digits_lake)
    taken = sum(file.rows for file in partition.manifest.forget) * 64
    assert isinstance(partition.side("forget", taken), Batch)
    stored = partition.side("forget", taken - 1)
    assert isinstance(stored, StoredRows)
    require_same_cycles(partition.forget(), stored)
    damaged = Path(partition.uri, partition.manifest.forget[0].path)
    damaged.write_bytes(damaged.read_bytes() + b"x")
    with pytest.raises(RuntimeError, match="bytes are not the"):
        partition.side("forget", 0)
