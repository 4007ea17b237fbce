"""One folder per class: `<root>/<wnid>/*.JPEG`, or the same below `train/` and `val/`."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.data.sources.base import ImageFiles, Item, Split, fetch, hold_out, read_index, split_of
from pipeline.errors import InputError

INDEX = "imagenet_class_index.json"
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


class ImageFolder(ImageFiles):
    """Labels follow the index file that is given or lies in the root, the standard order where every folder
    is an ImageNet WNID, and otherwise the folders' alphabetical order."""

    scattered = False

    def items(self) -> list[Item]:
        files: list[tuple[str, str, Split | None]] = []  # class folder, path, split
        for path in storage.walk(self.uri):
            folders = PurePosixPath(path).parts[:-1]
            split = split_of(folders[0]) if len(folders) > 1 else None
            if folders and not path.rsplit("/", 1)[-1].startswith("."):
                files.append((folders[1] if split else folders[0], path, split))
        if not files:
            raise InputError(
                f"source.uri: no images under {self.uri!r}, expected one folder per class with images in it"
            )
        label_of = self._labels({folder for folder, _, _ in files})
        items = [
            Item(sample_id=_stem(path), label=label_of[folder], split=split or "train", ref=path)
            for folder, path, split in files
        ]
        return items if any(split for _, _, split in files) else hold_out(items, self.held_out)

    def read(self, items: Sequence[Item]) -> Iterator[bytes]:
        calls = [partial(storage.read_bytes, storage.join(self.uri, item.ref)) for item in items]
        return fetch(calls, remote=not storage.is_local(self.uri))

    def _labels(self, folders: set[str]) -> dict[str, int]:
        given = self.given
        if given is None and storage.exists(storage.join(self.uri, INDEX)):
            given = storage.join(self.uri, INDEX)
        if given is None and folders <= {line.split()[0] for line in read_index("imagenet")}:
            given = "imagenet"
        index = read_index(given) if given is not None else sorted(folders)
        keys = [line.split(" ")[0] if given is not None else line for line in index]
        outside = folders - set(keys)
        if outside:
            raise InputError(
                f"source: the folder {min(outside)!r} is no class of the index, expected one of {len(keys)}"
                f" such as {keys[0]!r}"
            )
        self.classes = [line.partition(" ")[2] or line for line in index] if given is not None else index
        return {key: label for label, key in enumerate(keys)}


def _stem(path: str) -> str:
    """The file name without its image suffix; any other suffix stays, so that a stray file beside an image
    has its own id."""
    name = PurePosixPath(path)
    return name.stem if name.suffix.lower() in IMAGE_SUFFIXES else name.name
