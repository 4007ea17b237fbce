"""CelebA: a folder or zip of images and `list_attr_celeba.txt` or `.csv`. One attribute makes the two
classes: 0 without, 1 with it."""

import csv
import io
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import PurePosixPath

from pydantic import Field

from pipeline import storage
from pipeline.data.sources.base import (
    LARGEST_FILE,
    HeldOut,
    Item,
    Raw,
    Split,
    Unreadable,
    fetch,
    read_image,
    unique_ids,
    with_splits,
)
from pipeline.data.sources.listing import JUNK_REASON, PassedOver, is_junk, list_files, too_large
from pipeline.data.text_file import read_text
from pipeline.errors import InputError

TABLES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


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
        self.passed_over: list[str] = []

    def items(self) -> list[Item]:
        passed_over = PassedOver()
        files = {entry.path: entry.problem for entry in list_files(self.uri, passed_over)}
        by_name = {PurePosixPath(path).name: path for path, problem in files.items() if not problem}
        table = next((by_name[name] for name in TABLES if name in by_name), None)
        if table is None:
            raise InputError(
                f"source.uri: {self.uri!r} has no list_attr_celeba.txt or .csv, expected it beside the images"
            )
        attributes = self._attributes(table)
        places = self._places(files, passed_over)
        missing = attributes.keys() - places.keys()
        if missing or not attributes:
            raise InputError(
                f"source.uri: {len(missing)} of {len(attributes)} images of {table} are not under"
                f" {self.uri!r}, the first is {min(missing, default='none')}; expected a folder or zip with"
                " all of them"
            )
        for name, refs in places.items():
            if name not in attributes:
                passed_over.add(f"images that {PurePosixPath(table).name} does not list", refs[0], len(refs))
            elif len(refs) > 1:
                raise InputError(
                    f"source.uri: the image {name} is there {len(refs)} times ({refs[0]} and {refs[1]}),"
                    " expected it once: which one is meant?"
                )
        partition = next((by_name[name] for name in PARTITIONS if name in by_name), None)
        part_of = self._partition(partition, attributes) if partition else {}
        items = [
            Item(
                sample_id=sample_id,
                label=int(value > 0),
                split=part_of.get(name, "train"),
                ref=places[name][0],
                problem=files.get(places[name][0], ""),
            )
            for sample_id, (name, value) in zip(
                unique_ids([PurePosixPath(name).stem for name in attributes], list(attributes)),
                attributes.items(),
            )
        ]
        self.passed_over = passed_over.lines
        return with_splits(items, self.held_out, announced=bool(part_of))

    def read(self, items: Sequence[Item]) -> Iterator[Raw]:
        zipped: dict[str, list[str]] = defaultdict(list)
        for item in items:
            archive, _, name = item.ref.partition("#")
            if name:
                zipped[archive].append(name)
        content: dict[str, Raw] = {}
        for archive, names in zipped.items():  # opened once: its directory names every image of the set
            uri = storage.join(self.uri, archive)
            contents = storage.retrying(uri, "read", partial(_zipped, uri, names))
            content |= {f"{archive}#{name}": data for name, data in zip(names, contents)}

        def read(item: Item) -> Raw:
            return read_image(storage.join(self.uri, item.ref))

        loose = fetch(
            [item for item in items if item.ref not in content], read, remote=not storage.is_local(self.uri)
        )
        for item in items:
            yield content.pop(item.ref) if item.ref in content else next(loose)

    def _places(self, files: dict[str, str], passed_over: PassedOver) -> dict[str, list[str]]:
        """By file name, where each image is: loose, or in a zip."""
        places: dict[str, list[str]] = defaultdict(list)
        for path in files:
            if path.lower().endswith(IMAGE_SUFFIXES):
                places[PurePosixPath(path).name].append(path)
            elif path.lower().endswith(".zip"):
                storage.require_file(storage.join(self.uri, path))
                for name in _names(storage.join(self.uri, path), passed_over):
                    places[PurePosixPath(name).name].append(f"{path}#{name}")
        return places

    def _attributes(self, table: str) -> dict[str, int]:
        header, rows = self._table(table)
        if self.attribute not in header:
            near = get_close_matches(self.attribute, header, n=3, cutoff=0.5)
            known = f"did you mean {' or '.join(near)}? expected one of" if near else "expected one of"
            raise InputError(f"source.attribute: got {self.attribute!r}, {known} {', '.join(header)}")
        if header.count(self.attribute) > 1:
            raise InputError(
                f"source: {table} has the column {self.attribute!r} {header.count(self.attribute)} times,"
                " expected it once: which one is meant?"
            )
        column = header.index(self.attribute)
        return {name: int(value) for name, value in _values(table, rows, column, ("-1", "0", "1")).items()}

    def _partition(self, table: str, attributes: dict[str, int]) -> dict[str, Split]:
        _, rows = self._table(table, header=table.endswith(".csv"))
        parts = _values(table, rows, 0, ("0", "1", "2"))
        missing = attributes.keys() - parts.keys()
        if missing:
            raise InputError(
                f"source: {table} lacks {len(missing)} images, the first is {min(missing)}; expected a part"
                " for every image that has attributes"
            )
        return {name: "train" if part == "0" else "heldout" for name, part in parts.items()}

    def _table(self, path: str, *, header: bool = True) -> tuple[list[str], list[list[str]]]:
        """Column names without the image's, and the rows with it. The text form has a count line first and no
        name for that column."""
        text = read_text(storage.join(self.uri, path))
        if path.endswith(".csv"):
            first, *rows = [row for row in csv.reader(io.StringIO(text)) if row] or [[]]
            return first[1:], rows
        lines = [line.split() for line in text.splitlines() if line.strip()]
        if header and lines and len(lines[0]) == 1:
            count, *lines = lines
            if count != [str(max(0, len(lines) - 1))]:
                raise InputError(
                    f"source: {path} has {max(0, len(lines) - 1)} rows, its first line says {count[0]}; it"
                    " was cut or changed: fetch it again, or mend that line"
                )
        return (lines[0] if lines else [], lines[1:]) if header else ([], lines)


def _values(table: str, rows: Sequence[Sequence[str]], column: int, known: Sequence[str]) -> dict[str, str]:
    """By image, the value of `column`. Raises `InputError` for a row that lacks it or has another value, and
    for an image that has two rows."""
    values: dict[str, str] = {}
    for name, *cells in rows:
        value = cells[column].strip() if column < len(cells) else "nothing"
        if value not in known or name in values:
            raise InputError(
                f"source: {table} has {'two rows' if name in values else repr(value)} for {name}, expected"
                f" one with {' or '.join(known)}"
            )
        values[name] = value
    return values


def _names(uri: str, passed_over: PassedOver) -> list[str]:
    fs, path = storage.filesystem(uri)

    def call() -> list[str]:
        with fs.open(path, "rb") as raw, zipfile.ZipFile(raw) as archive:
            return archive.namelist()

    try:
        names = storage.retrying(uri, "read", call)
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise InputError(f"source: {uri} is no zip or a damaged one ({error}); fetch it again") from error
    images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    for name in filter(is_junk, images):
        passed_over.add(JUNK_REASON, f"{uri}#{name}")
    return [name for name in images if not is_junk(name)]


def _zipped(uri: str, names: list[str]) -> list[Raw]:
    fs, path = storage.filesystem(uri)
    with fs.open(path, "rb") as raw, zipfile.ZipFile(raw) as archive:
        return [_member(archive, name) for name in names]


def _member(archive: zipfile.ZipFile, name: str) -> Raw:
    if (size := archive.getinfo(name).file_size) > LARGEST_FILE:
        return Unreadable(too_large(size))
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        # another checksum, cut short, encrypted, packed in a way that is not known
        return Unreadable(f"damaged in {archive.filename or 'its zip'}: {error}")
