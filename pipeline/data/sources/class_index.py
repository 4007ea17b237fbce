"""Which class has which label: the index that is given, or the standard one of ImageNet."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from models.imagenet import class_lines
from pipeline import storage
from pipeline.data.text_file import read_text
from pipeline.errors import InputError

WNID = re.compile(r"(n\d{8})\s+(\S.*)")
LARGEST_LABEL = 100_000  # a name and a line of the manifest for every class up to it


@dataclass(frozen=True, slots=True)
class ClassLine:
    """One class of an index: the folder of its images, and its name."""

    folder: str
    name: str


def class_names(index: Sequence[ClassLine] | None, labels: Iterable[int]) -> list[str]:
    """Class names by label. Raises `InputError` for a label outside `index`, or too large to be one."""
    known_labels = sorted(set(labels))
    smallest, largest = min(known_labels, default=0), max(known_labels, default=-1)
    if index is None and (smallest < 0 or largest >= LARGEST_LABEL):
        raise InputError(
            f"source: got label {smallest if smallest < 0 else largest}, expected 0 to {LARGEST_LABEL - 1}:"
            " mend the label, or number the classes from 0"
        )
    if index is None:
        return [str(label) for label in range(largest + 1)]
    outside = [label for label in known_labels if not 0 <= label < len(index)]
    if outside:
        raise InputError(
            f"source: got label {outside[0]}, expected 0..{len(index) - 1}, the classes of its index; mend"
            " the label or source.classes"
        )
    return [line.name for line in index]


def read_index(index: Sequence[Any] | str) -> list[ClassLine]:
    """Classes by label: a list, 'imagenet' (the standard 1,000), or the URI of a JSON or text file.

    JSON is `{"0": ["n01440764", "tench"], ...}` or a list; a text file has one class a line. What has no
    WNID before it and no tab in it is one name, blanks and all.
    """
    if not isinstance(index, str):
        return _class_lines(index, "source.classes")
    if index == "imagenet":
        return _class_lines(class_lines(), index)
    uri = storage.absolute(index)
    if not storage.exists(uri):
        raise InputError(
            f"source.classes: got {index!r}, which is missing; expected a list of names, 'imagenet' or an"
            " index file"
        )
    text = read_text(uri)
    try:
        value = storage.json_value(text) if uri.endswith(".json") else text.rstrip().splitlines()
        if isinstance(value, dict):
            value = [value[str(label)] for label in range(len(value))]
        if not isinstance(value, list):
            raise ValueError(f"it holds a {type(value).__name__}")
    except (ValueError, KeyError, RecursionError) as error:
        raise InputError(
            f"source.classes: {index!r} is no class index ({error}); expected labels 0..n-1 as in ImageNet's"
        ) from error
    return _class_lines(value, f"source.classes: {index!r}")


def _class_lines(values: Sequence[Any], where: str) -> list[ClassLine]:
    lines = [_class_line(value) for value in values]
    if not lines:
        raise InputError(f"{where}: names no class, expected one for every label, or none of it at all")
    for line in lines:
        require_text(line.folder, where)
        require_text(line.name, where)
    blank = next((label for label, line in enumerate(lines) if not line.folder), None)
    if blank is not None:
        raise InputError(
            f"{where}: class {blank} has no name, expected one for every label: those behind it would move"
        )
    return lines


def require_text(name: str, where: str) -> None:
    """Raise `InputError` for a name with half of a character in it, which JSON can write: no file could."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"source: {where} has the name {name!r}, which is no text; mend it") from error


def _class_line(value: Any) -> ClassLine:
    if isinstance(value, list) and len(value) == 2:
        return ClassLine(str(value[0]), str(value[1]))
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value).strip()
    folder, tab, name = text.partition("\t")
    if tab:
        return ClassLine(folder.strip(), name.strip())
    match = WNID.fullmatch(text)
    return ClassLine(match[1], match[2]) if match else ClassLine(text, text)


def by_first_word(lines: Sequence[ClassLine]) -> list[ClassLine]:
    """The classes of an index that has `<folder> <name>` a line, the folders being no WNIDs."""
    words = [
        line.folder.partition(" ") if line.folder == line.name else (line.folder, "", "") for line in lines
    ]
    return [ClassLine(folder, rest or line.name) for line, (folder, _, rest) in zip(lines, words)]


def in_order(names: Iterable[str]) -> list[str]:
    """Class folders or names without an index: by the alphabet, and as numbers where all of them are."""
    names = set(names)
    if all(re.fullmatch(r"[0-9]{1,18}", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
