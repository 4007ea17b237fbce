"""What every source of raw images gives: a list of items, and their content on demand."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from pydantic import Field

from models.imagenet import class_lines
from pipeline import storage
from pipeline.config.base import Fraction, Section
from pipeline.errors import InputError

FETCH_THREADS = 8
Split = Literal["train", "heldout"]


@dataclass(frozen=True, slots=True)
class Item:
    """One raw image. `ref` is where the source finds it again; nothing else reads it."""

    sample_id: str
    label: int
    split: Split
    ref: str


Raw = bytes | np.ndarray  # an encoded image, or uint8 (H, W, C)


class RawImages(Protocol):
    """A source. It is pickled to the workers, so it holds settings and no open files."""

    @property
    def classes(self) -> Sequence[str]:
        """Class names; the label is the index. Known once the items are listed."""
        ...

    def items(self) -> list[Item]:
        """Every image, in any order. Raises `InputError` when the source is missing, empty or contradicts
        itself."""
        ...

    @property
    def scattered(self) -> bool:
        """Whether one image can only be had by reading a Parquet row group, so that a class may be spread
        over the whole source."""
        ...

    def read(self, items: Sequence[Item]) -> Iterator[Raw]:
        """The content of `items`, in their order. Raises when storage fails; a damaged image is the reader's
        to find."""
        ...


class HeldOut(Section):
    held_out: Fraction = Field(
        0.2,
        description=(
            "share of each class kept out of training, by sample id; unused where the files have a split"
        ),
    )


class FileSettings(HeldOut):
    uri: str = Field(description="where the images are (a folder, file or glob on any storage)")
    classes: list[str] | str | None = Field(
        None,
        description="class names by label, 'imagenet', or the URI of an index file; absent: the source's own",
    )


class ImageFiles:
    """What the sources that read files of any names have in common: where they are, the class index that was
    given, the share held out."""

    def __init__(self, uri: str, classes: list[str] | str | None, held_out: float) -> None:
        self.uri, self.held_out, self.given = storage.absolute(uri), held_out, classes
        self.classes: list[str] = []


def hold_out(items: Iterable[Item], share: float) -> list[Item]:
    """`items` with round(share * n) of each class's n marked heldout: those whose sample ids hash lowest, so
    the choice depends on the ids alone, never on the order of listing."""
    by_label: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        by_label[item.label].append(item)
    result = []
    for label in sorted(by_label):
        ordered = sorted(by_label[label], key=lambda item: hashlib.sha256(item.sample_id.encode()).digest())
        kept_out = round(share * len(ordered))
        result += [
            replace(item, split="heldout" if i < kept_out else "train") for i, item in enumerate(ordered)
        ]
    return result


def require_unique(items: Sequence[Item]) -> None:
    """Raise `InputError` when two items share a sample id: requests and held-out choices go by it."""
    places: dict[str, str] = {}
    for item in items:
        if item.sample_id in places:
            raise InputError(
                f"source: got two images with the sample id {item.sample_id!r} ({places[item.sample_id]} and"
                f" {item.ref}), expected every sample id once: rename one of them"
            )
        places[item.sample_id] = item.ref


def fetch(calls: Sequence[Callable[[], bytes]], *, remote: bool) -> Iterator[bytes]:
    """The results of `calls` in order. Small objects in a far store are fetched several at a time, a window
    ahead at most."""
    if not remote:
        for call in calls:
            yield call()
        return
    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        for first in range(0, len(calls), 4 * FETCH_THREADS):
            yield from pool.map(lambda call: call(), calls[first : first + 4 * FETCH_THREADS])


def split_of(name: str) -> Split | None:
    """The split that a folder's or file's name announces (train, val, test and the like), None when it
    announces none."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    if "train" in words:
        return "train"
    return "heldout" if {"val", "valid", "validation", "test", "heldout", "t10k"} & set(words) else None


def find_files(uri: str, suffixes: Sequence[str]) -> list[str]:
    """The URIs of the files that `uri` (a file, a folder or a glob) names, sorted. Raises `InputError` when
    there are none."""
    uri = storage.absolute(uri)
    if "*" in uri:
        fs, pattern = storage.filesystem(uri)
        matches = [
            fs.unstrip_protocol(str(path)) for path in storage.retrying(uri, "list", lambda: fs.glob(pattern))
        ]
        files = sorted(path.removeprefix("file://") for path in matches)
    elif uri.endswith(tuple(suffixes)):
        files = [uri] if storage.exists(uri) else []
    else:
        files = [storage.join(uri, name) for name in storage.walk(uri)]
    files = [file for file in files if file.endswith(tuple(suffixes))]
    if not files:
        raise InputError(
            f"source.uri: {uri!r} holds no {' or '.join(suffixes)} file; expected a file, a folder or a glob"
            " with some"
        )
    return files


def class_names(index: list[str] | str | None, labels: Iterable[int]) -> list[str]:
    """Class names by label. Raises `InputError` for a label outside the index `index`."""
    known_labels = sorted(set(labels))
    names = (
        read_index(index)
        if index is not None
        else [str(label) for label in range(max(known_labels, default=-1) + 1)]
    )
    outside = [label for label in known_labels if not 0 <= label < len(names)]
    if outside:
        raise InputError(
            f"source: got label {outside[0]}, expected 0..{len(names) - 1}, the classes of its index; mend"
            " the label or source.classes"
        )
    return [name.partition(" ")[2] or name for name in names]


def read_index(index: list[str] | str) -> list[str]:
    """Classes by label, each `<folder>` or `<folder> <name>`: a list, 'imagenet' (the standard 1,000), or the
    URI of a JSON or text file.

    JSON is `{"0": ["n01440764", "tench"], ...}` or a list; a text file has one class a line.
    """
    if not isinstance(index, str):
        return index
    if index == "imagenet":
        return class_lines()
    uri = storage.absolute(index)
    if not storage.exists(uri):
        raise InputError(
            f"source.classes: got {index!r}, which is missing; expected a list of names, 'imagenet' or an"
            " index file"
        )
    text = storage.read_bytes(uri).decode()
    try:
        value = json.loads(text) if uri.endswith(".json") else text.split("\n")
        if isinstance(value, dict):
            value = [value[str(label)] for label in range(len(value))]
        return [" ".join(item) if isinstance(item, list) else str(item).strip() for item in value if item]
    except (ValueError, KeyError) as error:
        raise InputError(
            f"source.classes: {index!r} is no class index ({error}); expected labels 0..n-1 as in ImageNet's"
        ) from error
