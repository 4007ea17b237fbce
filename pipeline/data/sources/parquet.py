"""Parquet with `image: struct<bytes, path>` and `label`: the layout of the public ImageNet-1K and CIFAR-10
image releases."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.data.sources.base import (
    LARGEST_FILE,
    ImageFiles,
    Item,
    Raw,
    Split,
    Unreadable,
    unique_ids,
    with_splits,
)
from pipeline.data.sources.class_index import class_names, read_index
from pipeline.data.sources.labels import UNLABELLED, label_values, numbered
from pipeline.data.sources.listing import PassedOver, find_files, is_test, split_of, too_large
from pipeline.errors import InputError

IMAGE_COLUMNS = ("image", "img")  # the second is CIFAR-10's
ResultT = TypeVar("ResultT")
LARGEST_GROUP = 2 << 30  # bytes of a row group as it is stored, uncompressed
BATCH_BYTES = 256 << 20  # of rows that are decoded at once: a dictionary lets a few bytes stand for many
LARGEST_READ = 4 << 30  # bytes of the images of one shard, which are in memory together
LARGEST_TEXT = 1 << 30  # bytes of the paths and labels of a file
ROWS_WITHOUT_BYTES = 1_000_000  # of a row group; more need at least a byte each


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The rows of one file without their images, and the class names that its metadata may hold."""

    paths: list[str | None]
    labels: list[int] | list[str]
    names: list[str] | None


class ParquetImages(ImageFiles):
    """Sample ids are the first of these that is unique over the whole source: the stem of the image's path,
    `<split>/<path>` without its suffix, `<split>-<running row number>`. Files are held out whose name, or the
    nearest folder that says a split, says test or validation."""

    scattered = True

    def items(self) -> list[Item]:
        passed_over = PassedOver()
        files = find_files(self.uri, ".parquet", passed_over)
        splits = {file: split_of(name) for file, name in files.items()}
        rows: list[tuple[str, int, str | None, int | str]] = []  # file, row, path, label
        given = self.given
        for file, split_name in files.items():
            listing = _listing(file)
            labels: Sequence[int | str] = listing.labels
            given = listing.names if given is None and listing.names else given
            labelled = [
                (file, row, path, label)
                for row, (path, label) in enumerate(zip(listing.paths, labels))
                if label != UNLABELLED or not is_test(split_name)
            ]
            if len(labelled) < len(labels):
                passed_over.add("rows of test files without a label (-1)", file, len(labels) - len(labelled))
            rows += labelled
        if not rows:
            raise InputError(f"source.uri: the Parquet files of {self.uri!r} have no rows, expected images")
        index = read_index(given) if given is not None else None
        numbers, index = numbered([label for *_, label in rows], index, self.uri)
        self.classes = class_names(index, numbers)
        self.passed_over = passed_over.lines
        ids = _sample_ids([(splits[file] or "train", path) for file, _, path, _ in rows])
        items = [
            Item(sample_id=name, label=label, split=splits[file] or "train", ref=f"{file}#{row}")
            for name, label, (file, row, _, _) in zip(ids, numbers, rows)
        ]
        return with_splits(items, self.held_out, announced="heldout" in splits.values())

    def read(self, items: Sequence[Item]) -> Iterator[Raw]:
        rows_by_file: dict[str, list[int]] = defaultdict(list)
        for item in items:
            file, _, row = item.ref.rpartition("#")
            rows_by_file[file].append(int(row))
        content = {
            file: dict(zip(sorted(rows), images_of(file, np.array(sorted(rows)))))
            for file, rows in rows_by_file.items()
        }
        for item in items:
            file, _, row = item.ref.rpartition("#")
            yield content[file].pop(int(row))


def image_column(schema: pa.Schema, file: str) -> str:
    """The column of the encoded images. Raises `InputError` when there is none, or two, or no column of
    labels."""
    columns = {field.name: field.type for field in schema}
    names = []
    for name in IMAGE_COLUMNS:
        kind = columns.get(name)
        fields = list(kind) if kind is not None and pa.types.is_struct(kind) else []
        if any(field.name == "bytes" for field in fields):
            names.append(name)
    if len(names) == 1:
        return names[0]
    if names:
        raise InputError(
            f"source: {file} has images in the columns {' and '.join(names)}, expected one of them: which is"
            " meant? Write the file without the other"
        )
    raise InputError(
        f"source: {file} does not have the columns image.bytes, image.path and label, but"
        f" {', '.join(f'{name} ({kind})' for name, kind in list(columns.items())[:6]) or 'none'};"
        " expected that layout"
    )


def reading(file: str, call: Callable[[pq.ParquetFile], ResultT]) -> ResultT:
    """`call` of the opened file. Raises `InputError` for a file that is no Parquet, or damaged."""

    def checked() -> ResultT:
        fs, path = storage.filesystem(file)
        try:
            with pq.ParquetFile(fs.open(path, "rb", cache_type="none"), pre_buffer=True) as parquet:
                return call(parquet)
        except (pa.ArrowException, KeyError, UnicodeDecodeError, MemoryError, OverflowError) as error:
            raise _damaged(file, error) from error
        except OSError as error:
            if error.errno is None and type(error) is OSError and storage.is_local(file):
                raise _damaged(file, error) from error  # as Arrow says that a file is not what it should be
            raise

    return storage.retrying(file, "read", checked)


def _damaged(file: str, error: Exception) -> InputError:
    text = " ".join(str(error).split())[:200]
    return InputError(f"source: {file} is no Parquet file or a damaged one ({text}); fetch it again")


def _listing(file: str) -> Listing:
    """The images are not read."""

    def call(parquet: pq.ParquetFile) -> Listing:
        schema = parquet.schema_arrow
        column = image_column(schema, file)
        if "label" not in schema.names:
            image_column(pa.schema([field for field in schema if field.name != column]), file)
        for group in range(parquet.num_row_groups):
            _require_group(parquet, group, file)
        batches, size = [], 0
        for batch in decoded(parquet, range(parquet.num_row_groups), [f"{column}.path", "label"]):
            batches.append(batch)
            size += batch.nbytes
            if size > LARGEST_TEXT:
                raise InputError(
                    f"source: the paths and labels of {file} take more than {LARGEST_TEXT} bytes; expected"
                    " a short text each"
                )
        if not batches:
            return Listing(paths=[], labels=[], names=_names(schema))
        table = pa.Table.from_batches(batches)
        # without paths nothing of the column is read, and it is not in the table
        paths = (
            table[column].combine_chunks().field("path").to_pylist() if column in table.column_names else None
        )
        return Listing(
            paths=paths or [None] * table.num_rows,
            labels=label_values(table["label"], file),
            names=_names(schema),
        )

    return reading(file, call)


def _names(schema: pa.Schema) -> list[str] | None:
    """The class names that Hugging Face's metadata has for the labels; None where it has none."""
    try:
        value: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        for key in ("info", "features", "label", "names"):
            value = value.get(key) or {}
        return [str(name) for name in value] if isinstance(value, list) else None
    except (ValueError, AttributeError, RecursionError):
        return None


def _require_group(parquet: pq.ParquetFile, group: int, file: str) -> None:
    metadata = parquet.metadata.row_group(group)
    if metadata.total_byte_size > LARGEST_GROUP:
        raise InputError(
            f"source: row group {group} of {file} has {metadata.total_byte_size} bytes, expected at most"
            f" {LARGEST_GROUP}: they are in memory together; write the file with smaller row groups"
        )
    if metadata.num_rows > max(metadata.total_byte_size, ROWS_WITHOUT_BYTES):
        raise InputError(
            f"source: row group {group} of {file} has {metadata.num_rows} rows in {metadata.total_byte_size}"
            " bytes, which are no images; fetch it again"
        )


def decoded(
    parquet: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """`columns` of the row groups, so few rows at a time that they fit into memory whatever they hold: no
    value is larger than its column as it is stored, but a dictionary may repeat one in every row."""
    largest = max((_stored_bytes(parquet.metadata.row_group(group), columns) for group in groups), default=1)
    rows = min(max(1, BATCH_BYTES // largest), 1 << 16)
    return parquet.iter_batches(batch_size=rows, row_groups=list(groups), columns=list(columns))


def _stored_bytes(group: pq.RowGroupMetaData, columns: Sequence[str]) -> int:
    """Uncompressed bytes of `columns` in a row group, at least 1."""
    chunks = map(group.column, range(group.num_columns))
    return max(1, sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in columns))


def images_of(file: str, rows: np.ndarray) -> list[bytes | Unreadable]:
    """The encoded images of the increasing `rows`; only the row groups that hold some are read, a few rows at
    a time."""

    def call(parquet: pq.ParquetFile) -> list[bytes | Unreadable]:
        result: list[bytes | Unreadable] = []
        size = 0
        column = image_column(parquet.schema_arrow, file)
        start = 0
        for group in range(parquet.num_row_groups):
            end = start + parquet.metadata.row_group(group).num_rows
            here = rows[(rows >= start) & (rows < end)] - start
            first = 0  # of the batch in the group
            for batch in decoded(parquet, [group], [f"{column}.bytes"]) if len(here) else ():
                places = here[(here >= first) & (here < first + len(batch))] - first
                values = batch.column(0).field("bytes").take(pa.array(places)).to_pylist()
                images = [value or b"" for value in values]
                size += sum(map(len, images))
                if size > LARGEST_READ:
                    raise InputError(
                        f"source: {len(rows)} images of {file} take more than {LARGEST_READ} bytes together;"
                        " expected smaller images, or fewer in a shard: --set prepare.shard_rows=<fewer>"
                    )
                result += [
                    data if len(data) <= LARGEST_FILE else Unreadable(too_large(len(data))) for data in images
                ]
                first += len(batch)
                if first > here[-1]:
                    break
            start = end
        return result

    images = reading(file, call)
    if len(images) != len(rows):
        raise InputError(
            f"source: {file} gave {len(images)} of the {len(rows)} images listed there; it is damaged or was"
            " changed meanwhile: fetch it again, or run again"
        )
    return images


def _sample_ids(rows: Sequence[tuple[Split, str | None]]) -> list[str]:
    count: dict[str, int] = defaultdict(int)
    numbered_rows = []
    for split, _ in rows:
        numbered_rows.append(f"{split}-{count[split]:08d}")
        count[split] += 1
    if not all(path for _, path in rows):
        return numbered_rows
    paths = [(split, PurePosixPath(path or "")) for split, path in rows]
    return unique_ids(
        (path.stem for _, path in paths),
        (f"{split}/{path.parent / path.stem}" for split, path in paths),
        numbered_rows,
    )
