"""Shards: what is written is what was given, in files that are as large as their tensors and that any Parquet
reader understands."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.data import parquet_shards, sparse_rows
from pipeline.data.parquet_shards import Kind


def table_of(rows: int, kind: Kind, shape: tuple[int, ...]) -> tuple[pa.Table, dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    tensors = {
        name: random.integers(0, 256, (rows, *shape)).astype(parquet_shards.DTYPES[kind])
        for name in parquet_shards.tensor_columns(kind)
    }
    ids = pa.array([f"{number:05d}-é" for number in range(rows)])
    columns = [
        ids,
        pa.array(random.integers(0, 1000, rows), pa.int32()),
        *(parquet_shards.tensor_array(t, kind) for t in tensors.values()),
    ]
    return pa.table(columns, schema=parquet_shards.schema(kind, shape)), tensors


@pytest.mark.parametrize(
    ("kind", "shape"), [("image", (5, 7, 3)), ("image", (1, 1, 1)), ("latent", (4, 8, 8))]
)
def test_tensors_come_back_to_the_bit(tmp_path, kind: Kind, shape: tuple[int, ...]) -> None:
    table, tensors = table_of(50, kind, shape)
    shard = parquet_shards.write(
        str(tmp_path), "a.parquet", [table.slice(0, 11), table.slice(11)], kind, shape, label=0, split="train"
    )
    read = parquet_shards.read(str(tmp_path), shard)
    assert shard.rows == 50 and read["sample_id"].equals(table["sample_id"])
    picked, _ = parquet_shards.read_rows(str(tmp_path), shard, np.array([3, 11, 40]))
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(parquet_shards.tensor_values(read[name], kind, shape), tensor)
        np.testing.assert_array_equal(
            parquet_shards.tensor_values(picked[name].slice(1), kind, shape), tensor[[11, 40]]
        )


@pytest.mark.parametrize(("kind", "shape"), [("image", (50, 60, 3)), ("latent", (4, 32, 32))])
def test_a_few_rows_of_a_large_file_are_read_by_their_bytes(tmp_path, monkeypatch, kind: Kind, shape) -> None:
    monkeypatch.setattr(parquet_shards, "ROW_GROUP_BYTES", 64 * parquet_shards.row_bytes(kind, shape))
    table, _ = table_of(500, kind, shape)
    table = table.set_column(1, "label", pa.array([3] * 500, pa.int32()))
    shard = parquet_shards.write(str(tmp_path), "a.parquet", [table], kind, shape, label=3, split="train")
    monkeypatch.setattr(sparse_rows, "SMALL_BYTES", 1000)
    rows = np.array([0, 63, 64, 130, 131, 499])
    expected, groups = parquet_shards.read_rows(str(tmp_path), shard, rows)
    before = Path("/proc/self/io").read_text()
    with monkeypatch.context() as only:
        only.setattr(parquet_shards, "read_rows", None)
        picked, groups_by_bytes = sparse_rows.read(str(tmp_path), shard, rows, kind, shape)
    read = [int(text.split()[1]) for text in (before, Path("/proc/self/io").read_text())]
    assert picked.equals(expected) and groups == groups_by_bytes == 4
    used = len(rows) * parquet_shards.row_bytes(kind, shape)
    assert read[1] - read[0] < 5 * used, "the rows, and a footer, ids and a buffer; 43 times by row groups"
    many = np.arange(0, 500, 8)  # a row group gives more than a tenth of its rows
    assert sparse_rows.read(str(tmp_path), shard, many, kind, shape)[0].equals(table.take(pa.array(many)))


@pytest.mark.parametrize("how", [{"data_page_size": 30_000, "write_batch_size": 8}, {"compression": "zstd"}])
def test_a_file_that_somebody_else_wrote_is_read_by_row_groups(tmp_path, monkeypatch, how) -> None:
    table, _ = table_of(300, "image", (20, 30, 3))
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=100, use_dictionary=False, **how)
    shard = parquet_shards.Shard(
        path="b.parquet",
        rows=300,
        bytes=(tmp_path / "b.parquet").stat().st_size,
        sha256="",
        label=0,
        split="train",
    )
    rows = np.array([5, 250])
    plain, calls = parquet_shards.read_rows, []
    monkeypatch.setattr(sparse_rows.parquet_shards, "read_rows", lambda *a: calls.append(a) or plain(*a))
    picked, _ = sparse_rows.read(str(tmp_path), shard, rows, "image", (20, 30, 3))
    assert calls and picked.equals(table.take(pa.array(rows)))


def test_integers_are_those_of_every_chunk() -> None:
    for kind in (pa.int32(), pa.int64()):
        whole = pa.chunked_array(
            [pa.array([5, -6, 7], kind), pa.array([], kind), pa.array([2**31 - 1], kind)]
        )
        for column in (whole, whole.slice(1), whole.slice(4)):
            values = parquet_shards.integers(column)
            assert values.tolist() == column.to_pylist() and values.dtype == np.dtype(str(kind))


def test_a_file_says_to_any_reader_what_its_bytes_are() -> None:
    table, tensors = table_of(4, "image", (6, 5, 3))
    field = pq.read_schema(io.BytesIO(parquet_shards.encode([table], table.schema, 16))).field("image")
    shape = [int(side) for side in field.metadata[b"shape"].split()]
    first = np.frombuffer(table["image"][0].as_py(), field.metadata[b"dtype"].decode()).reshape(shape)
    np.testing.assert_array_equal(first, tensors["image"][0])


def test_a_file_is_hardly_larger_than_its_pixels_and_always_the_same(tmp_path) -> None:
    made = [
        parquet_shards.write(
            str(tmp_path),
            path,
            [table_of(20, "image", (64, 64, 3))[0]],
            "image",
            (64, 64, 3),
            label=0,
            split="train",
        )
        for path in ("a", "b")
    ]
    assert made[0].sha256 == made[1].sha256 == storage.sha256(storage.read_bytes(str(tmp_path / "b")))
    assert made[0].bytes < 1.02 * 20 * 64 * 64 * 3 + 8192
