"""WebDataset tar shards: members `<key>.jpg|.jpeg|.png|.webp` with the label in `<key>.cls` or
`<key>.json`."""

import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any

from pipeline import storage
from pipeline.data.sources.base import (
    FETCH_THREADS,
    LARGEST_FILE,
    ImageFiles,
    Item,
    Raw,
    fetch,
    unique_ids,
    with_splits,
)
from pipeline.data.sources.class_index import class_names, read_index
from pipeline.data.sources.labels import label_number, numbered
from pipeline.data.sources.listing import (
    JUNK_REASON,
    PassedOver,
    find_files,
    is_junk,
    shown,
    split_of,
    too_large,
)
from pipeline.errors import InputError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
LABEL_SUFFIXES = ("cls", "json")  # the first of them that a key has
NOT_UTF8 = "its name is not UTF-8"
LABEL_KEYS = ("label", "cls", "class_id")  # of a .json
LARGEST_LABEL_FILE, LARGEST_HEADER = 1 << 20, 1 << 20  # bytes
HEADER_TYPES = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
BLOCK = 512
GZIP = b"\x1f\x8b"


class Member(tarfile.TarInfo):
    """A member whose headers are read only where they are of a sane size: tarfile takes any into memory, and
    goes back where one is negative."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.size < 0 or (self.type in HEADER_TYPES and self.size > LARGEST_HEADER):
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


@dataclass
class Shard:
    """What one tar holds: by key, the image's place and length, and the label as it is written. Keys are
    always text: bytes that are not UTF-8 are shown as `\\xNN`."""

    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: dict[str, dict[str, int | str]] = field(default_factory=dict)  # by suffix
    misnamed: set[str] = field(default_factory=set)  # keys that are not UTF-8
    passed_over: PassedOver = field(default_factory=PassedOver)


class WebDataset(ImageFiles):
    """An image is found again by its place in the tar, so reading one costs one range request. Tars are held
    out whose name, or the nearest folder that says a split, says val or test."""

    scattered = False

    def items(self) -> list[Item]:
        passed_over = PassedOver()
        files = find_files(self.uri, ".tar", passed_over)
        with ThreadPoolExecutor(FETCH_THREADS) as pool:
            shards = list(pool.map(_read_shard, files))
        rows: list[tuple[str, str, int, int, int | str]] = []  # file, key, start, length, label
        misnamed = {(file, key) for file, shard in zip(files, shards) for key in shard.misnamed}
        for file, shard in zip(files, shards):
            labels = _labels(file, shard)
            passed_over.update(shard.passed_over)
            rows += [(file, key, *place, labels[key]) for key, place in shard.images.items()]
        if not rows:
            raise InputError(
                f"source.uri: the tar files of {self.uri!r} hold no image, expected members <key>.jpg and"
                " <key>.cls"
            )
        index = read_index(self.given) if self.given is not None else None
        numbers, index = numbered([label for *_, label in rows], index, self.uri)
        self.classes, self.passed_over = class_names(index, numbers), passed_over.lines
        ids = unique_ids(
            (PurePosixPath(key).name for _, key, *_ in rows),
            (key for _, key, *_ in rows),
            (f"{PurePosixPath(file).stem}/{key}" for file, key, *_ in rows),
        )
        items = [
            Item(
                sample_id=name,
                label=label,
                split=split_of(files[file]) or "train",
                ref=f"{file}#{start}+{length}",
                problem=NOT_UTF8 if (file, key) in misnamed else _problem(length),
            )
            for name, label, (file, key, start, length, _) in zip(ids, numbers, rows)
        ]
        announced = any(item.split == "heldout" for item in items)
        return with_splits(items, self.held_out, announced=announced)

    def read(self, items: Sequence[Item]) -> Iterator[Raw]:
        def read(item: Item) -> Raw:
            file, _, place = item.ref.rpartition("#")
            start, _, length = place.partition("+")
            return storage.read_range(file, int(start), int(start) + int(length))

        return fetch(items, read, remote=not storage.is_local(self.uri))


def _problem(length: int) -> str:
    return too_large(length) if length > LARGEST_FILE else ""


def _read_shard(file: str) -> Shard:
    def call() -> Shard:
        shard = Shard()
        fs, path = storage.filesystem(file)
        with fs.open(path, "rb") as raw:
            if raw.read(2) == GZIP:
                raise InputError(f"source: the tar {file} is compressed, expected a plain one: gunzip it")
            start: int | None = 0
            while start is not None:  # archives that were put one behind the other
                raw.seek(start)
                with tarfile.open(fileobj=raw, mode="r:", tarinfo=Member) as tar:
                    for member in tar:
                        _add(shard, file, tar, member)
                    start = _next_archive(raw, tar.offset)
        return shard

    try:
        return storage.retrying(file, "read", call)
    except (tarfile.TarError, UnicodeDecodeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"source: the tar {file} ends early or is damaged ({error}), expected a complete one: fetch it"
            " again"
        ) from error


def _next_archive(raw: IO[bytes], end: int) -> int | None:
    """Where another archive begins behind the end mark at `end`; None where only zeros are. tarfile itself
    takes a cut between two members for the end, and what is behind it for nothing."""
    raw.seek(end)
    if raw.read(BLOCK) != bytes(BLOCK):
        raise tarfile.ReadError("no end mark")
    place = end + BLOCK
    while chunk := raw.read(BLOCK << 11):
        if chunk.count(0) < len(chunk):
            first = next(i for i, byte in enumerate(chunk) if byte)
            return place + first // BLOCK * BLOCK
        place += len(chunk)
    return None


def _add(shard: Shard, file: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    path = shown(member.name)
    key, _, suffix = path.rpartition(".")
    suffix, target = suffix.lower(), shown(member.linkname).rpartition(".")[0]
    if member.isdir():
        return
    if path != member.name:
        shard.misnamed.add(key)
    if is_junk(path):
        shard.passed_over.add(JUNK_REASON, f"{file}#{path}")
    elif member.size < 0 or member.issparse():
        raise tarfile.ReadError(f"{path} is sparse, or of a negative size")
    elif suffix in IMAGE_SUFFIXES and member.isfile():
        if key in shard.images:
            raise InputError(f"source: {file} holds the image {key!r} twice, expected every key once")
        shard.images[key] = (member.offset_data, member.size)
    elif suffix in LABEL_SUFFIXES and member.isfile():
        label = _label(file, path, suffix, member.size, tar.extractfile(member))
        if suffix in shard.labels.get(key, {}):
            raise InputError(f"source: {file} holds the label {path!r} twice, expected every key once")
        if label is not None:
            shard.labels.setdefault(key, {})[suffix] = label
    elif member.islnk() and suffix in IMAGE_SUFFIXES and target in shard.images:
        shard.images[key] = shard.images[target]  # tar keeps what is there twice once
    elif member.islnk() and suffix in shard.labels.get(target, {}):
        shard.labels.setdefault(key, {})[suffix] = shard.labels[target][suffix]
    else:
        shard.passed_over.add("members that are neither image nor label", f"{file}#{path}")


def _labels(file: str, shard: Shard) -> dict[str, int | str]:
    """The label of each image of a tar, its `.cls` or else its `.json`. An image beside another of the same
    key up to its first dot, such as `<key>.seg.png`, is passed over; so is a `.json` without an image where
    labels are in `.cls`. Raises `InputError` for an image whose two labels are different numbers."""
    for key in [key for key in shard.images if key not in shard.labels]:
        folder, slash, name = key.rpartition("/")
        if folder + slash + name.partition(".")[0] in shard.labels.keys() - {key}:
            del shard.images[key]
            shard.passed_over.add("members that are neither image nor label", f"{file}#{key}")
    usual = next((one for one in LABEL_SUFFIXES if any(one in given for given in shard.labels.values())), "")
    labels = {}
    for key, given in shard.labels.items():
        if key in shard.images or usual in given:
            labels[key] = next(given[suffix] for suffix in LABEL_SUFFIXES if suffix in given)
        if len({label for label in given.values() if isinstance(label, int)}) > 1:
            raise InputError(
                f"source: {file} has {given['cls']} in {key}.cls and {given['json']} in {key}.json, expected"
                " the same label in both: mend or remove one"
            )
    missing = shard.images.keys() ^ labels.keys()
    if missing:
        raise InputError(
            f"source: {file} has only one of image and label for {min(missing)!r}, expected <key>.jpg and"
            " <key>.cls, or <key>.json with a label"
        )
    return labels


def _label(file: str, path: str, suffix: str, size: int, content: IO[bytes] | None) -> int | str | None:
    """The label that a member holds; None for a `.json` without one, which is about something else."""
    if size > LARGEST_LABEL_FILE or content is None:
        raise InputError(
            f"source: {path} in {file} has {size} bytes, expected a label of at most {LARGEST_LABEL_FILE}"
        )
    text = content.read().decode(errors="replace").strip().removeprefix("\ufeff")
    try:
        if suffix == "cls":
            return label_number(text)
        value = storage.json_value(text, finite=False)
    except (ValueError, RecursionError):
        expected = "a class number" if suffix == "cls" else "JSON, each key once"
        raise InputError(f"source: {path} in {file} holds {text[:40]!r}, expected {expected}") from None
    found = (value[key] for key in LABEL_KEYS if key in value) if isinstance(value, dict) else ()
    label = next(iter(found), None)
    if isinstance(label, float) and label.is_integer():
        return int(label)
    return int(label) if isinstance(label, bool) else label if isinstance(label, int | str) else None
