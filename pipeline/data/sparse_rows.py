"""Single rows out of a lake's file by where their bytes lie, so that a few rows of a large lake do not take a
row group of 4 MB each.

A tensor column is uncompressed values of one length, one data page a row group: the values end where the
column chunk ends. That holds for every file of large rows that `parquet_shards.encode` wrote, the first ones
included; a file of which it does not hold is read by row groups.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.data import parquet_shards
from pipeline.data.parquet_shards import Kind, Shard

SPARSE = 10  # by row groups unless they hold more than so many times the rows asked for
SMALL_BYTES = 256 << 10  # of a file: sooner read than asked for piece by piece
FOOTER_BYTES = 16 << 10  # read at first; that of eight row groups takes 4
# Beside its values a page has a header, 17 bytes at least, and the levels, 6 at least. Fewer than twice that
# beside the values of a whole chunk are those of one page.
PAGE_BYTES = 23


def read(root: str, shard: Shard, rows: np.ndarray, kind: Kind, shape: Sequence[int]) -> tuple[pa.Table, int]:
    """The rows at the increasing indices `rows` of a lake's file and the number of row groups they lie in, as
    `parquet_shards.read_rows` gives them."""
    if len(rows) * SPARSE >= shard.rows or shard.bytes <= SMALL_BYTES:
        return parquet_shards.read_rows(root, shard, rows)
    uri = storage.join(root, shard.path)
    metadata = _metadata(uri, shard.bytes)
    parquet_shards.require_rows(uri, metadata.num_rows, shard.rows)
    starts = np.cumsum([0, *(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))])
    group_of_row = np.searchsorted(starts, rows, side="right") - 1
    groups = {int(group): rows[group_of_row == group] - starts[group] for group in np.unique(group_of_row)}
    columns = parquet_shards.schema(kind, shape)
    tensors = parquet_shards.tensor_columns(kind)
    offsets = [_offsets(metadata, groups, columns.field(name)) for name in tensors]
    if len(rows) * SPARSE >= sum(np.diff(starts)[[*groups]]) or None in offsets:
        return parquet_shards.read_rows(root, shard, rows)
    arrays = [_ids(uri, metadata, groups), pa.array(np.full(len(rows), shard.label, np.int32))]
    for name, places in zip(tensors, offsets):
        assert places is not None
        arrays.append(_values(uri, places, columns.field(name).type))
    return pa.table(arrays, schema=columns), len(groups)


def _metadata(uri: str, size: int) -> pq.FileMetaData:
    """The footer of a Parquet file of `size` bytes; of a small one no more is read than that."""
    tail = storage.read_range(uri, max(0, size - FOOTER_BYTES), size)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length > len(tail):
        tail = storage.read_range(uri, size - length, size)
    return pq.read_metadata(io.BytesIO(b"PAR1" + tail[-length:]))


def _offsets(
    metadata: pq.FileMetaData, groups: Mapping[int, np.ndarray], field: pa.Field
) -> list[int] | None:
    """Where in the file the bytes of each row of a tensor column start; None where that cannot be told.
    `groups`: by row group, the indices of its rows that are asked for."""
    offsets: list[int] = []
    for group, rows in groups.items():
        chunk = metadata.row_group(group).column(metadata.schema.names.index(field.name))
        values = chunk.num_values * field.type.byte_width
        if (
            chunk.compression != "UNCOMPRESSED"
            or chunk.has_dictionary_page
            or not PAGE_BYTES <= chunk.total_compressed_size - values < 2 * PAGE_BYTES
        ):
            return None
        first = chunk.data_page_offset + chunk.total_compressed_size - values
        offsets += (first + rows * field.type.byte_width).tolist()
    return offsets


def _ids(uri: str, metadata: pq.FileMetaData, groups: Mapping[int, np.ndarray]) -> pa.ChunkedArray:
    """The sample ids of the rows asked for; that column is read of whole row groups."""
    fs, path = storage.filesystem(uri)

    def attempt() -> pa.ChunkedArray:
        with fs.open(path, "rb", cache_type="none") as file:
            parquet = pq.ParquetFile(file, metadata=metadata)
            of_groups = (
                parquet.read_row_group(group, columns=["sample_id"])["sample_id"].take(pa.array(rows))
                for group, rows in groups.items()
            )
            return pa.chunked_array([chunk for ids in of_groups for chunk in ids.chunks])

    return storage.retrying(uri, "read", attempt)


def _values(uri: str, offsets: Sequence[int], kind: pa.FixedSizeBinaryType) -> pa.Array:
    fs, path = storage.filesystem(uri)
    ends = [start + kind.byte_width for start in offsets]
    values = storage.retrying(
        uri, "read", lambda: fs.cat_ranges([path] * len(ends), list(offsets), ends, on_error="raise")
    )
    return pa.array(values, kind)  # which refuses a value of another length
