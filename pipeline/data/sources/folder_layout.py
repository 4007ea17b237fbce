"""What the folders of an image folder are: classes, splits with classes in them, or neither. Never guessed:
what could be either is refused with what was seen."""

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.data.sources.base import Split
from pipeline.data.sources.class_index import ClassLine, by_first_word
from pipeline.data.sources.listing import Entry, PassedOver, is_split_alone, is_test, split_of
from pipeline.errors import InputError

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
IMAGES_FOLDERS = {
    "images",
    "image",
    "imgs",
    "img",
    "jpeg",
    "jpg",
    "png",
}  # `<class>/images/`, as TinyImageNet
OUTSIDE = "files outside the class folders"
Tree = dict[str, list[tuple[str, ...]]]  # by folder: the parts of each path below it
HELP = "name the class folders with source.classes, or point source.uri at the folder that holds them"


@dataclass(frozen=True, slots=True)
class ClassFile:
    """A file in the folder of its class, and the split its place announces."""

    entry: Entry
    folder: str
    split: Split | None


def layout_of(
    entries: Sequence[Entry], index: Sequence[ClassLine], uri: str, passed_over: PassedOver
) -> list[ClassFile]:
    """The files of `entries` that lie in a class folder. Folders that `index` names are classes whatever they
    are called. Raises `InputError` for folders that are neither classes nor splits of some."""
    known = {line.folder for lines in (index, by_first_word(index)) for line in lines}
    spelling = {unicodedata.normalize("NFC", folder): folder for folder in sorted(known)}
    parts_of = [_parts(entry.path, spelling) for entry in entries]
    tops = _tree(parts_of)
    loose = [parts[0] for parts in parts_of if len(parts) == 1]
    if not tops:
        images = [name for name in loose if name.lower().endswith(IMAGE_SUFFIXES)]
        raise InputError(
            f"source.uri: no images under {uri!r}, expected one folder per class with images in it"
            + (f"; got {len(images)} images in no folder, the first is {images[0]!r}" if images else "")
        )
    splits = _splits(tops, known, uri)
    _require_classes(tops, splits, known, uri)
    depth = 1 if splits else 0
    files = []
    for entry, parts in zip(entries, parts_of):
        if len(parts) < depth + 2 or (splits and parts[0] not in splits):
            passed_over.add(OUTSIDE, entry.path)
        else:
            files.append(ClassFile(entry, parts[depth], splits.get(parts[0])))
    if not files:
        raise InputError(
            f"source.uri: {uri!r} holds {_some(sorted(tops))} and no folder of a class; expected one folder"
            " per class with images in it"
        )
    return files


def _parts(path: str, spelling: dict[str, str]) -> tuple[str, ...]:
    """The parts of a path, its folders in one spelling each: Macs write `é` as two characters, others as one.
    `spelling` holds the one that was met first, by the form in which they are equal."""
    parts = path.split("/")
    if path.isascii():
        return tuple(parts)
    folders = (spelling.setdefault(unicodedata.normalize("NFC", part), part) for part in parts[:-1])
    return (*folders, parts[-1])


def _tree(paths: Sequence[tuple[str, ...]]) -> Tree:
    tree: Tree = defaultdict(list)
    for parts in paths:
        if len(parts) > 1:
            tree[parts[0]].append(parts[1:])
    return tree


def _splits(tops: Tree, known: set[str], uri: str) -> dict[str, Split]:
    """The top folders that are splits; none where they are the classes."""
    named: dict[str, Split] = {
        top: split for top in sorted(tops) if top not in known and (split := split_of(top))
    }
    certain = [top for top in named if is_split_alone(top)]
    others = [top for top in sorted(tops) if top not in named and any(map(_is_image, tops[top]))]
    nested = [top for top in named if any(len(parts) > 1 for parts in tops[top])]
    if not named or (not certain and (others or len(nested) < len(named))):
        return {}  # classes, some of them perhaps called `bullet_train`
    if others:
        raise InputError(
            f"source.uri: {uri!r} holds {_some(certain or list(named))}, which say a split, beside"
            f" {_some(others)}; expected splits with class folders in them, or class folders: {HELP}"
        )
    return named


def _require_classes(tops: Tree, splits: dict[str, Split], known: set[str], uri: str) -> None:
    """Raise `InputError` unless every split holds class folders, those held out no others than those trained
    on, and every class folder images of its own."""
    trained: set[str] = set()
    for top in sorted(splits, key=lambda top: splits[top] != "train"):
        classes = _tree(tops[top])
        if not classes and not is_test(top):  # published test sets have no labels: those are passed over
            raise InputError(
                f"source.uri: {uri}/{top} holds {len(tops[top])} files and no folder of a class; expected"
                f" {top}/<class>/<image>: sort them into folders, or leave {top}/ out of source.uri"
            )
        unknown = set(classes) - trained - known
        if trained and unknown:
            raise InputError(
                f"source.uri: {uri}/{top} holds the folder {min(unknown)!r}, which is no class of the"
                f" training images ({_some(sorted(trained))}); expected the same classes in every split"
            )
        trained |= set(classes) if splits[top] == "train" else set()
        _require_images(classes, known, f"{uri}/{top}")
    if not splits:
        _require_images(tops, known, uri)


def _require_images(classes: Tree, known: set[str], where: str) -> None:
    """Raise `InputError` for a class without an image of its own whose folders are more than one of images:
    they may be the classes, and would all become one."""
    for name, paths in sorted(classes.items()):
        nested = [parts for parts in paths if len(parts) > 1]
        below = sorted({parts[0] for parts in nested})
        usual = len(below) == 1 and below[0].lower() in IMAGES_FOLDERS
        deeper = sorted({"/".join(parts[:2]) for parts in nested if len(parts) > 2})
        if usual and deeper:  # the classes, where the root is two levels too high
            usual, below = False, deeper
        own = any(_is_image(parts) for parts in paths if len(parts) == 1)
        doubtful = len(nested) == len(paths) or any(map(_is_image, nested))
        if name not in known and nested and doubtful and not (usual or own):
            raise InputError(
                f"source.uri: {where}/{name} holds no image of its own but the folders {_some(below)};"
                f" expected the images of a class directly in its folder: {HELP}"
            )


def _is_image(parts: tuple[str, ...]) -> bool:
    return parts[-1].lower().endswith(IMAGE_SUFFIXES)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
