"""Text files that people write: lists of sample ids, class indices, tables."""

import codecs

from pipeline import storage
from pipeline.errors import InputError

LARGEST_TEXT = 256 << 20  # bytes; the whole text is in memory


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
