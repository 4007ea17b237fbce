"""Parquet with `image: struct<bytes, path>` and `label`: the layout of the public ImageNet-1K and CIFAR-10
image releases."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.data.sources.base import ImageFiles, Item, Split, class_names, find_files, hold_out, split_of
from pipeline.errors import InputError


class ParquetImages(ImageFiles):
    """Sample ids are the first of these that is unique over the whole source: the stem of `image.path`,
    `<split>/<image.path>` without its suffix, `<split>-<running row number>`. Files named test or validation
    are held out."""

    scattered = True

    def items(self) -> list[Item]:
        files = find_files(self.uri, [".parquet"])
        splits: dict[str, Split | None] = {file: split_of(PurePosixPath(file).stem) for file in files}
        rows: list[tuple[str, int, str | None, int]] = []  # file, row, path, label
        for file in files:
            paths, labels, names = _listing(file)
            rows += [(file, row, path, label) for row, (path, label) in enumerate(zip(paths, labels))]
            if self.given is None and names:
                self.given = names
        if not rows:
            raise InputError(f"source.uri: the Parquet files of {self.uri!r} have no rows, expected images")
        self.classes = class_names(self.given, (label for *_, label in rows))
        ids = _sample_ids([(splits[file] or "train", path) for file, _, path, _ in rows])
        items = [
            Item(sample_id=name, label=label, split=splits[file] or "train", ref=f"{file}#{row}")
            for name, (file, row, _, label) in zip(ids, rows)
        ]
        return items if "heldout" in splits.values() else hold_out(items, self.held_out)

    def read(self, items: Sequence[Item]) -> Iterator[bytes]:
        rows_by_file: dict[str, list[int]] = defaultdict(list)
        for item in items:
            file, _, row = item.ref.rpartition("#")
            rows_by_file[file].append(int(row))
        content = {
            file: dict(zip(sorted(rows), _images(file, np.array(sorted(rows)))))
            for file, rows in rows_by_file.items()
        }
        for item in items:
            file, _, row = item.ref.rpartition("#")
            yield content[file].pop(int(row))


def _listing(file: str) -> tuple[list[str | None], list[int], list[str] | None]:
    """The paths and labels of one file, and the class names that its metadata may hold. The images are not
    read."""

    def call() -> tuple[pa.Table, pa.Schema]:
        with _opened(file) as parquet:
            table = parquet.read(columns=["image.path", "label"])
            return table, parquet.schema_arrow

    try:
        table, schema = storage.retrying(file, "read", call)
        labels = table["label"].to_pylist()
        paths = table["image"].combine_chunks().field("path").to_pylist()
    except (KeyError, pa.ArrowInvalid) as error:
        raise InputError(
            f"source: {file} does not have the columns image.bytes, image.path and label ({error}); expected"
            " that layout"
        ) from error
    if None in labels:
        raise InputError(
            f"source: {file} has a row without label (row {labels.index(None)}), expected an integer in each"
        )
    features = (
        json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    )
    return paths, labels, features.get("label", {}).get("names")


def _images(file: str, rows: np.ndarray) -> list[bytes]:
    """The encoded images of the increasing `rows`; only the row groups that hold some are read, one at a
    time."""

    def call() -> list[bytes]:
        result: list[bytes] = []
        with _opened(file) as parquet:
            start = 0
            for group in range(parquet.num_row_groups):
                end = start + parquet.metadata.row_group(group).num_rows
                here = rows[(rows >= start) & (rows < end)] - start
                if len(here):
                    images = (
                        parquet.read_row_group(group, columns=["image.bytes"])["image"]
                        .combine_chunks()
                        .field("bytes")
                    )
                    result += [value or b"" for value in images.take(pa.array(here)).to_pylist()]
                start = end
        return result

    found = storage.retrying(file, "read", call)
    if len(found) != len(rows):
        raise RuntimeError(
            f"{file}: found {len(found)} of the {len(rows)} images listed there; the file was changed"
            " meanwhile, run again"
        )
    return found


def _opened(file: str) -> pq.ParquetFile:
    fs, path = storage.filesystem(file)
    return pq.ParquetFile(fs.open(path, "rb", cache_type="none"), pre_buffer=True)


def _sample_ids(rows: Sequence[tuple[Split, str | None]]) -> list[str]:
    if all(path for _, path in rows):
        paths = [(split, PurePosixPath(path or "")) for split, path in rows]
        for ids in (
            [path.stem for _, path in paths],
            [f"{split}/{path.with_suffix('')}" for split, path in paths],
        ):
            if len(set(ids)) == len(ids):
                return ids
    count: dict[str, int] = defaultdict(int)
    ids = []
    for split, _ in rows:
        ids.append(f"{split}-{count[split]:08d}")
        count[split] += 1
    return ids
