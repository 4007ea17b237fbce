"""Text files that people write: lists of sample ids, class indices, tables."""

import codecs
import json
from collections import Counter
from typing import Any

from pipeline import storage
from pipeline.errors import InputError

LARGEST_TEXT = 256 << 20  # bytes; the whole text is in memory


def read_json(text: str) -> Any:
    """The value of a JSON text. Raises `ValueError`, also for an object that has a key twice: the last one
    would be taken without a word."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
            raise ValueError(f"the key {twice!r} is there twice")
        return values

    return json.loads(text, object_pairs_hook=unique)


def read_text(uri: str) -> str:
    """The text of a file in UTF-8, or with a byte order mark in UTF-16, without the mark. Raises `InputError`
    for what is no text or beyond `LARGEST_TEXT`."""
    if (length := storage.size(uri)) > LARGEST_TEXT:
        raise InputError(f"{uri} has {length} bytes, expected a text of at most {LARGEST_TEXT}")
    data = storage.read_bytes(uri)
    try:
        text = data.decode(
            "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
        )
    except UnicodeDecodeError as error:
        raise InputError(
            f"{uri!r} is no text in UTF-8, nor in UTF-16 with its mark; expected text"
        ) from error
    if "\0" in text:
        raise InputError(f"{uri!r} is no text, it holds zero bytes; expected text in UTF-8")
    return text
