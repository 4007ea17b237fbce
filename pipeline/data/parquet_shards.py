"""Parquet shards: their columns, deterministic writing, counted reading. No torch."""

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, BinaryIO, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from pipeline import storage

Kind = Literal["image", "latent"]
DTYPES: dict[str, type[np.generic]] = {"image": np.uint8, "latent": np.float16}
ResultT = TypeVar("ResultT")
FileT = TypeVar("FileT", bound="File")
FLIP_MARK = "~flip"  # ends the sample id of a mirrored copy
ROW_GROUP_BYTES = 4 << 20  # what a reader holds at once
READ_AHEAD = 2  # files


class Stored(BaseModel):
    """Base of what is written as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Statistics(Stored):
    """Of each channel of an encoder's latents: its model sees (latent - mean) / std."""

    mean: list[float]
    std: list[float]


class File(Stored):
    """One Parquet file. `path` is relative to the folder of the manifest that names it."""

    path: str
    rows: int
    bytes: int
    sha256: str


class Shard(File):
    """One class's file in a lake."""

    label: int
    split: Literal["train", "heldout"]


def row_bytes(kind: Kind, shape: Sequence[int]) -> int:
    """Bytes of one row's tensors: uint8 pixels, or mean and std in fp16."""
    return int(np.prod(shape)) * (1 if kind == "image" else 4)


def tensor_columns(kind: Kind) -> list[str]:
    return ["image"] if kind == "image" else ["latent_mean", "latent_std"]


def schema(kind: Kind, shape: Sequence[int], *, streamed: bool = False) -> pa.Schema:
    """sample_id, label and the tensors as bytes in C order, uint8 (H, W, C), or fp16 (C, H, W) twice;
    `streamed` rows have their place too.

    Bytes of one length are what Parquet writes and reads as they are; of a tensor it makes a list of numbers,
    at ten times the cost. What they mean is in the manifest, and beside the column for other readers.
    """
    dtype = np.dtype(DTYPES[kind])
    means = {"dtype": dtype.name, "shape": " ".join(map(str, shape))}
    fields = [pa.field("sample_id", pa.string()), pa.field("label", pa.int32())]
    if streamed:
        fields += [pa.field("position", pa.int64()), pa.field("draw", pa.int32())]
    width = int(np.prod(shape)) * dtype.itemsize
    return pa.schema(
        fields + [pa.field(name, pa.binary(width), metadata=means) for name in tensor_columns(kind)]
    )


def tensor_array(values: np.ndarray, kind: Kind) -> pa.Array:
    """(N, ...) numpy -> a tensor column; not a copy where `values` are of its type and contiguous."""
    values = np.ascontiguousarray(values, dtype=DTYPES[kind])
    return pa.Array.from_buffers(
        pa.binary(int(np.prod(values.shape[1:])) * values.itemsize), len(values), [None, pa.py_buffer(values)]
    )


def tensor_values(column: pa.ChunkedArray, kind: Kind, shape: Sequence[int]) -> np.ndarray:
    """A tensor column -> (N, *shape) numpy; a view where the column is one chunk, so read-only."""
    chunks = [_chunk_values(chunk, kind).reshape(-1, *shape) for chunk in column.chunks if len(chunk)]
    if len(chunks) == 1:
        return chunks[0]
    return np.concatenate(chunks) if chunks else np.empty((0, *shape), DTYPES[kind])


def integers(column: pa.ChunkedArray) -> np.ndarray:
    """A column of integers -> (N,) numpy. pyarrow's own `to_numpy` imports pandas: half a second of CPU in
    every new worker."""
    dtype = np.dtype(str(column.type))
    chunks = [
        np.frombuffer(chunk.buffers()[1], dtype, len(chunk), chunk.offset * dtype.itemsize)
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.concatenate(chunks) if chunks else np.empty(0, dtype)


def _chunk_values(chunk: pa.Array, kind: Kind) -> np.ndarray:
    width = chunk.type.byte_width
    data = np.frombuffer(chunk.buffers()[1], np.uint8)[
        chunk.offset * width : (chunk.offset + len(chunk)) * width
    ]
    return data.view(DTYPES[kind])


def encode(tables: Iterable[pa.Table], columns: pa.Schema, group_rows: int) -> bytes:
    """The bytes of a Parquet file with row groups of `group_rows`; the same rows always
    give the same bytes."""
    sink = io.BytesIO()
    _encode_into(sink, tables, columns, group_rows)
    return sink.getvalue()


def _encode_into(sink: Any, tables: Iterable[pa.Table], columns: pa.Schema, group_rows: int) -> int:
    """Write such a file into `sink` as the tables come; the number of its rows."""
    footers: list[pq.FileMetaData] = []
    with pq.ParquetWriter(
        sink,
        columns,
        compression="none",
        use_dictionary=["label"],
        write_statistics=["label", "sample_id"],
        metadata_collector=footers,
    ) as writer:
        for table in tables:
            writer.write_table(table.cast(columns), row_group_size=group_rows)
    return int(footers[0].num_rows)


class _Hashed(io.RawIOBase):
    """Passes on to `file` what is written, counted and hashed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.bytes, self.sha256 = file, 0, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        return self.file.write(data)


def group_rows(kind: Kind, shape: Sequence[int]) -> int:
    return max(16, ROW_GROUP_BYTES // row_bytes(kind, shape))


def write(
    root: str, path: str, tables: Iterable[pa.Table], kind: Kind, shape: Sequence[int], **place: Any
) -> Shard:
    """Write one shard under `root` as its `tables` come, and describe it. `place` is its label and split."""

    def fill(file: BinaryIO) -> Shard:
        sink = _Hashed(file)
        rows = _encode_into(sink, tables, schema(kind, shape), group_rows(kind, shape))
        return Shard(path=path, rows=rows, bytes=sink.bytes, sha256=sink.sha256.hexdigest(), **place)

    return storage.write_through(storage.join(root, path), fill)


def read(root: str, file: File, *, check_digest: bool = True) -> pa.Table:
    """The whole `file` under `root`. Raises `RuntimeError` when its size, rows or (if asked) digest are not
    the manifest's.

    The digest costs about a second per gigabyte: made once per lake and partition, left out of the stream.
    """
    content = _content(root, file, check_digest)
    table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
    require_rows(storage.join(root, file.path), table.num_rows, file.rows)
    return table


def open_parquet(root: str, file: File) -> pq.ParquetFile:
    """`file` to be read row group by row group: where it lies on a local disk, in memory otherwise. Raises
    `RuntimeError` when its size or rows are not the manifest's."""
    uri = storage.join(root, file.path)
    if storage.is_local(uri):
        source = pa.OSFile(uri.removeprefix("file://"))
        require_size(uri, source.size(), file)
    else:
        source = pa.BufferReader(_content(root, file, check_digest=False))
    parquet = pq.ParquetFile(source)
    require_rows(uri, parquet.metadata.num_rows, file.rows)
    return parquet


def copy(root: str, shard: Shard, to_root: str, path: str) -> tuple[Shard, int]:
    """Copy a whole shard as it is to `path` under `to_root`; returns the copy and its number of row groups.
    Raises `RuntimeError` as `read` does."""
    data = _content(root, shard, check_digest=True).to_pybytes()
    metadata = pq.read_metadata(io.BytesIO(data))
    require_rows(storage.join(root, shard.path), metadata.num_rows, shard.rows)
    storage.write_bytes(storage.join(to_root, path), data)
    return shard.model_copy(update={"path": path}), metadata.num_row_groups


def _content(root: str, file: File, check_digest: bool) -> pa.Buffer:
    uri = storage.join(root, file.path)
    if storage.is_local(uri):  # Arrow keeps its memory: bytes of that size are fresh pages every time
        with pa.OSFile(uri.removeprefix("file://")) as opened:
            data = opened.read_buffer()
    else:
        data = pa.py_buffer(storage.read_bytes(uri))
    require_size(uri, len(data), file)
    if check_digest and hashlib.sha256(data).hexdigest() != file.sha256:
        raise _damaged(uri, len(data), file)
    return data


def require_size(uri: str, size: int, file: File) -> None:
    if size != file.bytes:
        raise _damaged(uri, size, file)


def _damaged(uri: str, size: int, file: File) -> RuntimeError:
    return RuntimeError(
        f"{uri}: its {size} bytes are not the {file.bytes} its manifest describes; the file is damaged,"
        " remake it"
    )


def drop_rows(table: pa.Table, indices: Sequence[int]) -> pa.Table:
    """`table` without the rows at `indices`."""
    if not len(indices):
        return table
    return table.take(pa.array(np.setdiff1d(np.arange(table.num_rows), indices)))


def read_ahead(root: str, files: Iterable[File]) -> Iterator[pa.Table]:
    """`read` of each of `files` in order, without digests, the next ones fetched while one is used."""
    return fetched_ahead(partial(read, root, check_digest=False), files)


def fetched_ahead(
    fetch: Callable[[FileT], ResultT], files: Iterable[FileT], depth: int = READ_AHEAD
) -> Iterator[ResultT]:
    """`fetch` of each of `files` in order, the next `depth` by threads while one is used."""
    with ThreadPoolExecutor(depth) as pool:
        reading: deque[Future[ResultT]] = deque()
        for file in files:
            reading.append(pool.submit(fetch, file))
            if len(reading) > depth:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()


def read_listed(root: str, batch: dict[str, Any]) -> Iterator[pa.Table]:
    """`read_ahead` as Ray Data calls it, for the files described in `batch["files"]`. It is here so that read
    tasks need no torch."""
    return read_ahead(root, [File.model_validate_json(file) for file in batch["files"][0]])


def read_column(root: str, file: File, column: str) -> list[Any]:
    """One column of `file`; on an object store the others are not fetched."""
    values = _open(storage.join(root, file.path), lambda parquet: parquet.read(columns=[column]))[
        column
    ].to_pylist()
    require_rows(storage.join(root, file.path), len(values), file.rows)
    return values


def read_rows(root: str, file: File, rows: np.ndarray) -> tuple[pa.Table, int]:
    """The rows at the increasing indices `rows` and the number of row groups that were read for them, no
    others."""
    uri = storage.join(root, file.path)

    def call(parquet: pq.ParquetFile) -> tuple[pa.Table, np.ndarray, np.ndarray]:
        require_rows(uri, parquet.metadata.num_rows, file.rows)
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        groups = np.unique(np.searchsorted(starts, rows, side="right") - 1)
        return parquet.read_row_groups(groups.tolist()), groups, starts

    table, groups, starts = _open(uri, call)
    indices = (
        np.concatenate([np.arange(starts[g], starts[g + 1]) for g in groups])
        if len(groups)
        else np.empty(0, np.int64)
    )
    require_rows(uri, table.num_rows, len(indices))
    return table.take(pa.array(np.searchsorted(indices, rows))), len(groups)


def _open(uri: str, call: Callable[[pq.ParquetFile], ResultT]) -> ResultT:
    """`call` on the opened file; only what it asks for is fetched."""
    fs, path = storage.filesystem(uri)

    def attempt() -> ResultT:
        with fs.open(path, "rb", cache_type="none") as file:
            return call(pq.ParquetFile(file, pre_buffer=True))

    return storage.retrying(uri, "read", attempt)


def chunked(items: Sequence[Any], sizes: Sequence[int], limit: int) -> list[list[Any]]:
    """`items` in order, in groups of about `limit` bytes."""
    groups: list[list[Any]] = []
    room = 0
    for item, size in zip(items, sizes):
        if not groups or size > room:
            groups.append([])
            room = limit
        groups[-1].append(item)
        room -= size
    return groups


def require_rows(name: str, rows: int, expected: int) -> None:
    """Rows are counted at every hand-over: a silent loss would change what a run learns."""
    if rows != expected:
        raise RuntimeError(
            f"{name}: found {rows} rows where its manifest says {expected}; the file is damaged or was"
            " changed, remake it"
        )
