"""What every source of raw images gives: a list of items, and their content on demand."""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from pydantic import Field

from pipeline import storage
from pipeline.config.base import Section
from pipeline.errors import InputError

FETCH_THREADS = 8
LARGEST_FILE = 256 << 20  # bytes of one encoded image: a whole file is in memory while it is decoded
Split = Literal["train", "heldout"]


@dataclass(frozen=True, slots=True)
class Item:
    """One raw image. `ref` is where the source finds it again; nothing else reads it. `problem` says why it
    cannot be read."""

    sample_id: str
    label: int
    split: Split
    ref: str
    problem: str = ""


class Unreadable(ValueError):
    """The image cannot be used; the message is the reason that rejected.parquet names."""


Raw = bytes | np.ndarray | Unreadable  # an encoded image, uint8 (H, W, C), or why there is none


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
        """The content of `items`, in their order. Raises when storage fails; one image that cannot be read is
        given as `Unreadable`, a damaged one is the reader's to find."""
        ...


class HeldOut(Section):
    held_out: float = Field(
        0.2,
        ge=0,
        lt=1,
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
        self.passed_over: list[str] = []  # what the files hold and nobody reads, a line a reason


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


def fetch(items: Sequence[Item], read: Callable[[Item], Raw], *, remote: bool) -> Iterator[Raw]:
    """The content of `items` by `read`, in order; `Unreadable` for those that have a problem. Small objects
    in a far store are fetched several at a time, a window ahead at most."""

    def content(item: Item) -> Raw:
        return Unreadable(item.problem) if item.problem else read(item)

    if not remote:
        yield from map(content, items)
        return
    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        for first in range(0, len(items), 4 * FETCH_THREADS):
            yield from pool.map(content, items[first : first + 4 * FETCH_THREADS])


def with_splits(items: Sequence[Item], share: float, *, announced: bool) -> list[Item]:
    """`items` as they are where the source says what is held out, and by `hold_out` where it does not."""
    return list(items) if announced else hold_out(items, share)


def require_training_images(items: Sequence[Item]) -> None:
    """Raise `InputError` when nothing is left to train on."""
    if all(item.split == "heldout" for item in items):
        raise InputError(
            f"source: all {len(items)} images are held out, by the names of files or folders or by"
            f" source.held_out; expected some to train on{': it holds none' if not items else ''}"
        )


def unique_ids(*candidates: Iterable[str]) -> list[str]:
    """The first of `candidates`, each the ids of all images, shorter ones first, in which every id is there
    once, so written that a line of a text file can name it. The last one where none is."""
    ids: list[str] = []
    for candidate in candidates:
        ids = [nameable(name) for name in candidate]
        if len(set(ids)) == len(ids):
            break
    return ids


# what a line of a list of ids cannot hold or loses at its ends, and the mark of a mirrored copy
UNNAMEABLE = re.compile(r"^\s+|\s+$|[\x00-\x1f\x7f\x85\u2028\u2029]|~(?=flip$)")


def nameable(name: str) -> str:
    """`name` with control characters, line ends, blanks at its ends and the `~` of a final `~flip` written
    as in URLs. Most names are returned as they are."""
    if name.isalnum():  # the usual case
        return name
    return UNNAMEABLE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), name)


def read_image(uri: str) -> bytes | Unreadable:
    """An encoded image; `Unreadable` for a local file that is too large or may not be read. Raises
    `StorageError` when it is gone or its disk fails."""
    if not storage.is_local(uri):
        return storage.read_bytes(uri)
    try:
        with Path(uri.removeprefix("file://")).open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST_FILE:
                return Unreadable(f"too large: {size} bytes, expected at most {LARGEST_FILE}")
            return file.readall()
    except (PermissionError, IsADirectoryError) as error:
        return Unreadable(f"cannot be read: {error.strerror}")
    except OSError as error:
        raise storage.StorageError(
            f"could not read {uri} ({error.strerror}); run again once it is"
        ) from error
