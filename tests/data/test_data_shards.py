"""Shards: what is written is what was given, in files that are as large as their tensors and that any Parquet
reader understands."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.data import parquet_shards
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
