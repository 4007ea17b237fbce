"""Labels as tables have them: numbers, whole numbers written as floats, truth values, names of classes."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.sources.class_index import ClassLine, in_order, require_text
from pipeline.errors import InputError

UNLABELLED = -1  # what published test sets have in place of a label
TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
NUMBER = re.compile(r"[+-]?[0-9]+")  # int() would take 1_0 and the digits of any script


def label_number(text: str) -> int:
    """The number that a text file holds. Raises `ValueError` where it holds anything else."""
    if not NUMBER.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no whole number")
    return int(text)


def label_values(column: pa.ChunkedArray, where: str) -> list[int] | list[str]:
    """A label for each row: all integers or all names. Raises `InputError` for a row without one, and for
    what is neither."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        raise InputError(
            f"source: {where} has a row without label (row {column.is_null().to_pylist().index(True)}),"
            " expected one in each"
        )
    if any(is_text(column.type) for is_text in TEXTS):
        texts = column.to_pylist()
        blank = next((row for row, text in enumerate(texts) if not text.strip()), None)
        if blank is not None:
            raise InputError(f"source: {where} has a row without label (row {blank}), expected one in each")
        return texts
    wrong: Any = column[0] if len(column) else None
    if pa.types.is_floating(column.type):
        values = np.asarray(column.cast(pa.float64()))
        whole = (values == np.floor(values)) & (np.abs(values) < 2**53)  # beyond it not all are numbers of it
        wrong = None if whole.all() else values[~whole][0]
        column = column if wrong is not None else pa.chunked_array([values.astype(np.int64)])
    elif pa.types.is_boolean(column.type):
        column = column.cast(pa.int64())
    if not pa.types.is_integer(column.type):
        raise InputError(
            f"source: {where} has labels of type {column.type} such as {str(wrong)[:40]!r}; expected one"
            " whole number or class name a row"
        )
    return column.to_pylist()


def numbered(
    labels: Sequence[int | str], index: Sequence[ClassLine] | None, where: str
) -> tuple[list[int], list[ClassLine] | None]:
    """`labels` as numbers, and the classes: `index` where one is given, those that the labels themselves
    name, or None. A label may be the name or the folder of a class. Raises `InputError` for one that is
    neither, and for two that differ by the blanks at their ends alone."""
    spelling: dict[str, str] = {}
    for label in sorted({label for label in labels if isinstance(label, str)}):
        if (other := spelling.setdefault(label.strip(), label)) != label:
            raise InputError(
                f"source: {where} has the labels {other!r} and {label!r}, which differ by blanks alone;"
                " expected one spelling of a class: mend the labels"
            )
        require_text(label, where)
    labels = [label.strip() if isinstance(label, str) else label for label in labels]
    texts = set(spelling)
    if not texts:
        return [int(label) for label in labels], None if index is None else list(index)
    if len(texts) < len(set(labels)):
        raise InputError(
            f"source: {where} has numbers for labels in some files and names such as {min(texts)!r} in"
            " others; expected one kind"
        )
    classes = list(index) if index is not None else [ClassLine(text, text) for text in in_order(texts)]
    count = Counter(line.name for line in classes)
    label_of = {line.name: label for label, line in enumerate(classes) if count[line.name] == 1}
    label_of |= {line.folder: label for label, line in enumerate(classes)}
    unknown = texts - label_of.keys()
    if unknown:
        raise InputError(
            f"source: {where} has the label {min(unknown)!r}, expected one of {len(classes)} classes such as"
            f" {classes[0].name!r}; mend the label or source.classes"
        )
    return [label_of[str(label)] for label in labels], classes
