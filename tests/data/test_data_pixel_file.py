"""Pixel shards are written without pyarrow's writer: its reader gets from them what it gets from its own files."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.data import pixel_file, shards


def table_of(rows: int, shape: tuple[int, int, int], seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    ids = [f"{number:05d}-é" + "x" * int(random.integers(0, 300)) for number in range(rows)]
    images = random.integers(0, 256, (rows, *shape), dtype=np.uint8)
    columns = [pa.array(ids), pa.array(random.integers(0, 1000, rows), pa.int32()), shards.tensor_array(images, "image")]
    return pa.table(columns, schema=shards.schema("image", shape))


def file_of(tables: list[pa.Table], group_rows: int) -> bytes:
    return b"".join(map(bytes, pixel_file.encode(tables, tables[0].schema, group_rows)))


def by_pyarrow(table: pa.Table, group_rows: int) -> pq.ParquetFile:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=group_rows)
    return pq.ParquetFile(sink)


@pytest.mark.parametrize(
    ("rows", "shape", "group_rows"),
    [
        (1, (1, 1, 1), 16),
        (40, (1, 1, 1), 2),  # more row groups than a short list of the footer holds
        (50, (8, 8, 1), 1000),
        (33, (5, 7, 3), 16),  # a number of values that eight does not divide
        (9, (300, 200, 3), 4),  # an image of more than a page
        (300, (28, 28, 1), 200),  # several images a page, several pages a group
    ],
)
def test_pyarrow_reads_what_it_would_have_written(rows: int, shape: tuple[int, int, int], group_rows: int) -> None:
    table = table_of(rows, shape)
    data = file_of([table], group_rows)
    mine, theirs = pq.ParquetFile(io.BytesIO(data)), by_pyarrow(table, group_rows)
    read = mine.read()
    read.validate(full=True)
    assert read.equals(table) and read.schema == theirs.schema_arrow == table.schema and mine.schema == theirs.schema
    assert mine.metadata.num_rows == rows and mine.num_row_groups == theirs.num_row_groups
    for group in range(mine.num_row_groups):
        assert mine.read_row_group(group).equals(theirs.read_row_group(group))
        about, own = mine.metadata.row_group(group), theirs.metadata.row_group(group)
        assert (about.num_rows, about.num_columns) == (own.num_rows, own.num_columns)
        for column in range(about.num_columns):
            assert about.column(column).num_values == own.column(column).num_values
            assert about.column(column).path_in_schema == own.column(column).path_in_schema
    assert mine.read(columns=["sample_id"])["sample_id"].equals(table["sample_id"])
    assert pa.Table.from_batches(mine.iter_batches(batch_size=7)).equals(table)


def test_a_dataset_of_them_is_filtered(tmp_path) -> None:
    tables = [table_of(20, (8, 8, 1), seed) for seed in range(3)]
    for number, table in enumerate(tables):
        (tmp_path / f"{number}.parquet").write_bytes(file_of([table], 16))
    found = ds.dataset(sorted(map(str, tmp_path.iterdir()))).to_table(filter=ds.field("label") < 500)
    together = pa.concat_tables(tables)
    assert 0 < found.num_rows < 60 and found.equals(together.filter(pa.compute.less(together["label"], 500)))


def test_rows_that_come_in_several_tables_and_chunks_are_all_there() -> None:
    table = table_of(70, (8, 8, 3))
    chunked = pa.concat_tables([table.slice(0, 11), table.slice(11, 9)])
    data = file_of([chunked, table.slice(20, 0), table.slice(20)], 16)
    assert pq.ParquetFile(io.BytesIO(data)).read().equals(table)
    assert pq.read_metadata(io.BytesIO(data)).num_row_groups == 2 + 4


def test_the_file_is_hardly_larger_than_its_pixels_and_always_the_same() -> None:
    table = table_of(20, (64, 64, 3))
    data = file_of([table], 16)
    assert data == file_of([table_of(20, (64, 64, 3))], 16)
    names = sum(len(name.encode()) for name in table["sample_id"].to_pylist())
    assert len(data) < 1.02 * 20 * 64 * 64 * 3 + names + 8192
