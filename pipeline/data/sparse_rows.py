"""Single rows out of a lake's or a partition's files by where their bytes lie, so that a few rows of a large
lake do not take a row group of 4 MB each.

A tensor column is uncompressed values of one length, one data page a row group: the values end where the
column chunk ends. That holds for every file of large rows that `parquet_shards.encode` wrote, the first ones
included; a file of which it does not hold is read by row groups.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
        arrays.append(_values([uri] * len(places), places, columns.field(name).type))
    return pa.table(arrays, schema=columns), len(groups)


@dataclass(frozen=True, kw_only=True)
class Located:
    """A file of N rows that is read row by row. `offsets`: of each tensor column the byte at which each row
    starts, (N,); None where that cannot be told."""

    root: str
    shard: Shard
    sample_id: list[str]
    offsets: list[np.ndarray] | None

    @property
    def uri(self) -> str:
        return storage.join(self.root, self.shard.path)


def locate(root: str, shard: Shard, kind: Kind, shape: Sequence[int]) -> Located:
    """Where the rows of a file lie, and their ids. Raises `RuntimeError` when its size or rows are not the
    manifest's."""
    uri = storage.join(root, shard.path)
    parquet_shards.require_size(uri, storage.size(uri), shard)
    metadata = _metadata(uri, shard.bytes)
    parquet_shards.require_rows(uri, metadata.num_rows, shard.rows)
    groups = {
        group: np.arange(metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)
    }
    columns = parquet_shards.schema(kind, shape)
    offsets = [
        _offsets(metadata, groups, columns.field(name)) for name in parquet_shards.tensor_columns(kind)
    ]
    return Located(
        root=root,
        shard=shard,
        sample_id=_ids(uri, metadata, groups).to_pylist(),
        offsets=[np.array(places) for places in offsets if places is not None]
        if None not in offsets
        else None,
    )


def tensors(
    files: Sequence[Located], file: np.ndarray, row: np.ndarray, kind: Kind, shape: Sequence[int]
) -> list[np.ndarray]:
    """The tensor columns, (N, *shape) each, of N rows anywhere in `files`: the rows at `row` of the files at
    `file`, in that order; they may repeat. Read by their bytes, or by row groups where those cannot be
    told."""
    names, columns = parquet_shards.tensor_columns(kind), parquet_shards.schema(kind, shape)
    values = [np.empty((len(row), *shape), parquet_shards.DTYPES[kind]) for _ in names]
    by_bytes = []
    for number in np.unique(file):
        item, here = files[number], np.flatnonzero(file == number)
        if item.offsets is not None:
            by_bytes.append((item.uri, item.offsets, here))
            continue
        rows, place = np.unique(row[here], return_inverse=True)
        table, _ = parquet_shards.read_rows(item.root, item.shard, rows)
        for name, column in zip(names, values, strict=True):
            column[here] = parquet_shards.tensor_values(table[name], kind, shape)[place]
    if by_bytes:
        here = np.concatenate([places for *_, places in by_bytes])
        uris = [uri for uri, _, places in by_bytes for _ in places]
        for index, (name, column) in enumerate(zip(names, values, strict=True)):
            starts = [int(start) for _, offsets, places in by_bytes for start in offsets[index][row[places]]]
            read = _values(uris, starts, columns.field(name).type)
            column[here] = parquet_shards.tensor_values(pa.chunked_array([read]), kind, shape)
    return values


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
            return pa.chunked_array([chunk for ids in of_groups for chunk in ids.chunks], pa.string())

    return storage.retrying(uri, "read", attempt)


def _values(uris: Sequence[str], offsets: Sequence[int], kind: pa.FixedSizeBinaryType) -> pa.Array:
    """Values of one length, each of a file of its own; all files lie in one store."""
    fs, _ = storage.filesystem(uris[0])
    paths = [storage.filesystem(uri)[1] for uri in uris]
    ends = [start + kind.byte_width for start in offsets]
    values = storage.retrying(
        uris[0], "read", lambda: fs.cat_ranges(paths, list(offsets), ends, on_error="raise")
    )
    return pa.array(values, kind)  # which refuses a value of another length
