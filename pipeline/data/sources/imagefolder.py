"""One folder per class: `<root>/<wnid>/*.JPEG`, or the same below `train/` and `val/`."""

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.data.sources.base import ImageFiles, Item, Raw, fetch, read_image, unique_ids, with_splits
from pipeline.data.sources.class_index import ClassLine, by_first_word, in_order, read_index
from pipeline.data.sources.folder_layout import IMAGE_SUFFIXES, layout_of
from pipeline.data.sources.listing import PassedOver, list_files
from pipeline.errors import InputError

INDEX = "imagenet_class_index.json"


class ImageFolder(ImageFiles):
    """Labels follow the index file that is given or lies in the root, the standard order where every folder
    is an ImageNet WNID, and otherwise the folders' order, alphabetical or of numbers."""

    scattered = False

    def items(self) -> list[Item]:
        passed_over = PassedOver()
        entries = [entry for entry in list_files(self.uri, passed_over) if entry.path != INDEX]
        given = self.given
        if given is None and storage.exists(storage.join(self.uri, INDEX)):
            given = storage.join(self.uri, INDEX)
        index = read_index(given) if given is not None else None
        files = layout_of(entries, index or read_index("imagenet"), self.uri, passed_over)
        label_of = self._labels({file.folder for file in files}, index)
        paths = [file.entry.path for file in files]
        ids = unique_ids(map(_stem, paths), map(_without_suffix, paths), paths)
        items = [
            Item(
                sample_id=sample_id,
                label=label_of[file.folder],
                split=file.split or "train",
                ref=file.entry.path,
                problem=file.entry.problem,
            )
            for sample_id, file in zip(ids, files)
        ]
        self.passed_over = passed_over.lines
        announced = any(file.split for file in files)
        return with_splits(items, self.held_out, announced=announced)

    def read(self, items: Sequence[Item]) -> Iterator[Raw]:
        def read(item: Item) -> Raw:
            return read_image(storage.join(self.uri, item.ref))

        return fetch(items, read, remote=not storage.is_local(self.uri))

    def _labels(self, folders: set[str], index: list[ClassLine] | None) -> dict[str, int]:
        standard = read_index("imagenet")
        if index is None and folders <= {line.folder for line in standard}:
            index = standard
        if index is None:
            index = [ClassLine(folder, folder) for folder in in_order(folders)]
        if not folders <= {line.folder for line in index}:
            shorter = by_first_word(index)
            index = shorter if folders <= {line.folder for line in shorter} else index
        label_of = {line.folder: label for label, line in enumerate(index)}
        outside = folders - label_of.keys()
        if outside:
            raise InputError(
                f"source: the folder {min(outside)!r} is no class of the index, expected one of {len(index)}"
                f" such as {index[0].folder!r}"
            )
        if len(label_of) < len(index):
            twice = next(line.folder for label, line in enumerate(index) if label_of[line.folder] != label)
            raise InputError(
                f"source.classes: the folder {twice!r} is there twice, expected one label for each"
            )
        self.classes = [line.name for line in index]
        return label_of


def _stem(path: str) -> str:
    """The file name without its image suffix; any other suffix stays, so that a stray file beside an image
    has its own id."""
    name = PurePosixPath(path)
    return name.stem if name.suffix.lower() in IMAGE_SUFFIXES else name.name


def _without_suffix(path: str) -> str:
    return path.rpartition("/")[0] + "/" + _stem(path)
