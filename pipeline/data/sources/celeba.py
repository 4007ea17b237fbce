"""CelebA: a folder or zip of images and `list_attr_celeba.txt` or `.csv`. One attribute makes the two
classes: 0 without, 1 with it."""

import csv
import io
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import PurePosixPath

from pydantic import Field

from pipeline import storage
from pipeline.data.sources.base import HeldOut, Item, Split, fetch, hold_out
from pipeline.errors import InputError

TABLES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv")


class CelebASettings(HeldOut):
    uri: str = Field(description="where the images are (a folder with the attributes beside them)")
    attribute: str = Field(
        description="the column of list_attr_celeba that makes the two classes, such as Eyeglasses"
    )


class CelebA:
    """`list_eval_partition`, where it lies beside the attributes, decides what is held out (its parts 1 and
    2)."""

    scattered = False

    def __init__(self, uri: str, attribute: str, held_out: float) -> None:
        self.uri, self.attribute, self.held_out = storage.absolute(uri), attribute, held_out
        self.classes = [f"not {attribute}", attribute]

    def items(self) -> list[Item]:
        files = storage.walk(self.uri)
        by_name = {PurePosixPath(path).name: path for path in files}
        table = next((by_name[name] for name in TABLES if name in by_name), None)
        if table is None:
            raise InputError(
                f"source.uri: {self.uri!r} has no list_attr_celeba.txt or .csv, expected it beside the images"
            )
        attributes = self._attributes(table)
        images = {PurePosixPath(path).name: path for path in files if path.lower().endswith((".jpg", ".png"))}
        for archive in (path for path in files if path.lower().endswith(".zip")):
            images.update(
                {
                    PurePosixPath(name).name: f"{archive}#{name}"
                    for name in _names(storage.join(self.uri, archive))
                }
            )
        missing = attributes.keys() - images.keys()
        if missing or not attributes:
            raise InputError(
                f"source.uri: {len(missing)} of {len(attributes)} images of {table} are not under"
                f" {self.uri!r}, the first is {min(missing, default='none')}; expected a folder or zip with"
                " all of them"
            )
        partition = next((by_name[name] for name in PARTITIONS if name in by_name), None)
        part_of = self._partition(partition) if partition else {}
        items = [
            Item(
                sample_id=PurePosixPath(name).stem,
                label=int(value > 0),
                split=part_of.get(name, "train"),
                ref=images[name],
            )
            for name, value in attributes.items()
        ]
        return items if part_of else hold_out(items, self.held_out)

    def read(self, items: Sequence[Item]) -> Iterator[bytes]:
        zipped: dict[str, list[str]] = defaultdict(list)
        for item in items:
            archive, _, name = item.ref.partition("#")
            if name:
                zipped[archive].append(name)
        content: dict[str, bytes] = {}
        for archive, names in zipped.items():  # opened once: its directory names every image of the set
            uri = storage.join(self.uri, archive)
            contents = storage.retrying(uri, "read", partial(_zipped, uri, names))
            content |= {f"{archive}#{name}": data for name, data in zip(names, contents)}
        files = [item.ref for item in items if item.ref not in content]
        loose = fetch(
            [partial(storage.read_bytes, storage.join(self.uri, ref)) for ref in files],
            remote=not storage.is_local(self.uri),
        )
        for item in items:
            yield content.pop(item.ref) if item.ref in content else next(loose)

    def _attributes(self, table: str) -> dict[str, int]:
        header, rows = self._table(table)
        if self.attribute not in header:
            near = get_close_matches(self.attribute, header, n=3, cutoff=0.5)
            known = f"did you mean {' or '.join(near)}? expected one of" if near else "expected one of"
            raise InputError(f"source.attribute: got {self.attribute!r}, {known} {', '.join(header)}")
        column = header.index(self.attribute)
        return {name: int(values[column]) for name, *values in rows}

    def _partition(self, table: str) -> dict[str, Split]:
        _, rows = self._table(table, header=table.endswith(".csv"))
        return {name: "train" if values[0] == "0" else "heldout" for name, *values in rows}

    def _table(self, path: str, *, header: bool = True) -> tuple[list[str], list[list[str]]]:
        """Column names without the image's, and the rows with it. The text form has a count line first and no
        name for that column."""
        text = storage.read_bytes(storage.join(self.uri, path)).decode()
        if path.endswith(".csv"):
            first, *rows = [row for row in csv.reader(io.StringIO(text)) if row]
            return first[1:], rows
        lines = [line.split() for line in text.splitlines() if line.strip()]
        if header and len(lines[0]) == 1:
            lines = lines[1:]
        return (lines[0], lines[1:]) if header else ([], lines)


def _names(uri: str) -> list[str]:
    fs, path = storage.filesystem(uri)
    with fs.open(path, "rb") as raw, zipfile.ZipFile(raw) as archive:
        return [name for name in archive.namelist() if name.lower().endswith((".jpg", ".png"))]


def _zipped(uri: str, names: list[str]) -> list[bytes]:
    fs, path = storage.filesystem(uri)
    with fs.open(path, "rb") as raw, zipfile.ZipFile(raw) as archive:
        return [archive.read(name) for name in names]
