"""Labels as tables have them: numbers, whole numbers written as floats, truth values, names of classes."""

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.sources.class_index import ClassLine, in_order
from pipeline.errors import InputError

UNLABELLED = -1  # what published test sets have in place of a label


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
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.to_pylist()
    if pa.types.is_floating(column.type) and pc.all(pc.equal(pc.floor(column), column)).as_py() is not False:
        column = _cast(column, where)
    elif pa.types.is_boolean(column.type):
        column = column.cast(pa.int64())
    if not pa.types.is_integer(column.type):
        raise InputError(
            f"source: {where} has labels of type {column.type} such as {str(column[0])[:40]!r}; expected one"
            " whole number or class name a row"
        )
    return column.to_pylist()


def numbered(
    labels: Sequence[int | str], index: Sequence[ClassLine] | None, where: str
) -> tuple[list[int], list[ClassLine] | None]:
    """`labels` as numbers, and the classes: `index` where one is given, those that the labels themselves
    name, or None. A label may be the name or the folder of a class. Raises `InputError` for one that is
    neither."""
    texts = {label for label in labels if isinstance(label, str)}
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


def _cast(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise InputError(f"source: {where} has labels that are no whole numbers ({error})") from error
