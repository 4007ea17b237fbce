"""WebDataset tar shards: members `<key>.jpg|.jpeg|.png` with the label in `<key>.cls`."""

import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from pipeline import storage
from pipeline.data.sources.base import (
    FETCH_THREADS,
    ImageFiles,
    Item,
    class_names,
    fetch,
    find_files,
    hold_out,
    split_of,
)
from pipeline.errors import InputError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
BLOCK = 512


class WebDataset(ImageFiles):
    """An image is found again by its place in the tar, so reading one costs one range request. Tars named val
    or test are held out."""

    scattered = False

    def items(self) -> list[Item]:
        files = find_files(self.uri, [".tar"])
        with ThreadPoolExecutor(FETCH_THREADS) as pool:
            items = [item for members in pool.map(_members, files) for item in members]
        if not items:
            raise InputError(
                f"source.uri: the tar files of {self.uri!r} hold no image, expected members <key>.jpg and"
                " <key>.cls"
            )
        self.classes = class_names(self.given, (item.label for item in items))
        return items if any(item.split == "heldout" for item in items) else hold_out(items, self.held_out)

    def read(self, items: Sequence[Item]) -> Iterator[bytes]:
        calls = []
        for item in items:
            file, _, place = item.ref.rpartition("#")
            start, _, length = place.partition("+")
            calls.append(partial(storage.read_range, file, int(start), int(start) + int(length)))
        return fetch(calls, remote=not storage.is_local(self.uri))


def _members(file: str) -> list[Item]:
    split = split_of(PurePosixPath(file).stem) or "train"
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}

    def call() -> None:
        images.clear()
        labels.clear()
        fs, path = storage.filesystem(file)
        with fs.open(path, "rb") as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
            for member in tar:
                key, _, suffix = member.name.rpartition(".")
                if not member.isfile():
                    continue
                if suffix.lower() in IMAGE_SUFFIXES:
                    if key in images:
                        raise InputError(
                            f"source: {file} holds the image {key!r} twice, expected every key once"
                        )
                    images[key] = (member.offset_data, member.size)
                elif suffix == "cls":
                    labels[key] = _label(file, member.name, tar.extractfile(member))
            # where the end mark should be; tarfile itself takes a cut between two members for the end
            raw.seek(tar.offset)
            if raw.read(BLOCK) != bytes(BLOCK):
                raise tarfile.ReadError("no end mark")

    try:
        storage.retrying(file, "read", call)
    except tarfile.TarError as error:
        raise InputError(
            f"source: the tar {file} ends early or is damaged ({error}), expected a complete one: fetch it"
            " again"
        ) from error
    missing = images.keys() ^ labels.keys()
    if missing:
        raise InputError(
            f"source: {file} has only one of image and label for {min(missing)!r}, expected <key>.jpg and"
            " <key>.cls"
        )
    return [
        Item(
            sample_id=PurePosixPath(key).name, label=labels[key], split=split, ref=f"{file}#{start}+{length}"
        )
        for key, (start, length) in images.items()
    ]


def _label(file: str, name: str, content: Any) -> int:
    text = content.read().decode(errors="replace").strip()
    try:
        return int(text)
    except ValueError:
        raise InputError(f"source: {name} in {file} holds {text[:40]!r}, expected a class number") from None
