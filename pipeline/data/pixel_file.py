"""Shards of pixels as Parquet, written directly: what other columns leave to pyarrow costs a third of decoding and scaling an image here.

Parquet has no bytes in lists, only 32-bit integers, and pyarrow makes ten bytes of levels and integers of each pixel before it packs
them. The format itself needs none of that. Where each value stands is two runs a row; and the pixels, as 8-bit indices into a
dictionary of the 256 values (index k is value k), are written as they are in memory. Any Parquet reader gets the columns of
`shards.schema` from it. Sources: apache/parquet-format parquet.thrift, Encodings.md (RLE_DICTIONARY) and Thrift's compact protocol.
"""

import base64
import struct as binary
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

MAGIC = b"PAR1"
CREATED_BY = "unlearn pixel_file 1"
INT32, BYTE_ARRAY = 1, 6  # physical types
OPTIONAL, REPEATED = 1, 2
UTF8, LIST, UINT_8 = 0, 3, 11  # converted types
PLAIN, RLE, RLE_DICTIONARY = 0, 3, 8  # encodings
DATA_PAGE, DICTIONARY_PAGE = 0, 2
UNCOMPRESSED = 0
PAGE_BYTES = 128 << 10  # read in the processor's cache: a quarter faster than a page per row group
LEVELS_OF_PIXELS = 3  # an image that is there, a value in its list, that is there
Field = tuple[int, bytes]  # of Thrift: type and encoded value
Bytes = bytes | memoryview


def encode(tables: Iterable[pa.Table], columns: pa.Schema, group_rows: int) -> Iterator[Bytes]:
    """A Parquet file with the rows of `tables` (sample_id, label, image; no nulls) in row groups of at most `group_rows`, in parts.

    Pixels are not copied: a part is good until the next is asked for. The last one is the footer.
    """
    yield MAGIC
    groups: list[Field] = []
    rows, at = 0, len(MAGIC)
    for table in tables:
        for first in range(0, table.num_rows, group_rows):
            pages, group = row_group(table.slice(first, group_rows), at, len(groups))
            yield from pages
            groups.append(group)
            rows += min(group_rows, table.num_rows - first)
            at += sum(map(len, pages))
    footer = file_metadata(columns, rows, groups)
    yield footer + binary.pack("<I", len(footer)) + MAGIC


def row_group(table: pa.Table, at: int, ordinal: int) -> tuple[list[Bytes], Field]:
    """The pages of the rows of `table`, which begin at byte `at` of the file, and what the footer says of them."""
    chunks_of_images = [chunk.to_numpy_ndarray() for chunk in table["image"].chunks]
    images = chunks_of_images[0] if len(chunks_of_images) == 1 else np.concatenate(chunks_of_images)
    names = [name.encode() for name in table["sample_id"].to_pylist()]
    ids = b"".join(part for name in names for part in (binary.pack("<I", len(name)), name))
    labels = table["label"].to_numpy().astype("<i4").tobytes()
    there = levels([(table.num_rows, 1)])
    chunks = [
        (["sample_id"], BYTE_ARRAY, table.num_rows, data_page(table.num_rows, PLAIN, [there, ids])),
        (["label"], INT32, table.num_rows, data_page(table.num_rows, PLAIN, [there, labels])),
        (["image", "list", "element"], INT32, images.size, [*dictionary_page(), *image_pages(images)]),
    ]
    described, start = [], at
    for path, kind, values, pages in chunks:
        described.append(column_chunk(path, kind, values, start, pages))
        start += sum(map(len, pages))
    total = i64(start - at)
    fields = {1: listed(described), 2: total, 3: i64(table.num_rows), 5: i64(at), 6: total, 7: i16(ordinal)}
    return [page for *_, pages in chunks for page in pages], struct(fields)


def image_pages(images: np.ndarray) -> Iterator[Bytes]:
    """Data pages of about `PAGE_BYTES`, whole images in each."""
    rows = max(1, PAGE_BYTES // images[0].size)
    for first in range(0, len(images), rows):
        page = images[first : first + rows]
        yield from data_page(page.size, RLE_DICTIONARY, pixels(page))


def pixels(images: np.ndarray) -> list[Bytes]:
    """The content of a data page: where lists begin, that nothing is missing, and one bit-packed run of 8-bit indices."""
    begins = levels([(1, 0), (images[0].size - 1, 1)] * len(images))
    nothing_missing = levels([(images.size, LEVELS_OF_PIXELS)])
    eights = -(-images.size // 8)
    return [begins, nothing_missing, bytes([8]) + varint(eights << 1 | 1), images.reshape(-1).data, bytes(8 * eights - images.size)]


def levels(runs: Sequence[tuple[int, int]]) -> bytes:
    """Runs of (count, level) with the length that goes before them."""
    data = b"".join(varint(count << 1) + bytes([level]) for count, level in runs if count)
    return binary.pack("<I", len(data)) + data


def data_page(values: int, encoding: int, content: Sequence[Bytes]) -> list[Bytes]:
    about = struct({1: i32(values), 2: i32(encoding), 3: i32(RLE), 4: i32(RLE)})
    return [page_header(DATA_PAGE, content, {5: about}), *content]


def dictionary_page() -> list[Bytes]:
    """Every pixel value at its own index."""
    content: list[Bytes] = [np.arange(256, dtype="<i4").tobytes()]
    return [page_header(DICTIONARY_PAGE, content, {7: struct({1: i32(256), 2: i32(PLAIN)})}), *content]


def page_header(kind: int, content: Sequence[Bytes], about: Mapping[int, Field]) -> bytes:
    size = i32(sum(map(len, content)))
    return struct({1: i32(kind), 2: size, 3: size, **about})[1]


def column_chunk(path: Sequence[str], kind: int, values: int, at: int, pages: Sequence[Bytes]) -> Field:
    """The footer's entry of the pages that begin at byte `at`; a dictionary, header and content, goes before the data."""
    size = i64(sum(map(len, pages)))
    fields = {1: i32(kind), 3: listed([text(name) for name in path]), 4: i32(UNCOMPRESSED), 5: i64(values), 6: size, 7: size}
    if path[0] == "image":
        fields |= {2: listed([i32(PLAIN), i32(RLE), i32(RLE_DICTIONARY)]), 9: i64(at + len(pages[0]) + len(pages[1])), 11: i64(at)}
    else:
        fields |= {2: listed([i32(PLAIN), i32(RLE)]), 9: i64(at)}
    return struct({2: i64(0), 3: struct(dict(sorted(fields.items())))})


def file_metadata(columns: pa.Schema, rows: int, groups: Sequence[Field]) -> bytes:
    arrow = struct({1: text("ARROW:schema"), 2: text(base64.b64encode(columns.serialize().to_pybytes()))})
    fields = {1: i32(2), 2: listed(list(schema_elements())), 3: i64(rows), 4: listed(groups), 5: listed([arrow]), 6: text(CREATED_BY)}
    return struct(fields)[1]


def schema_elements() -> Iterator[Field]:
    """The tree of columns, depth first: repetition, name, children, converted and logical type."""
    yield struct({4: text("schema"), 5: i32(3)})
    yield struct({1: i32(BYTE_ARRAY), 3: i32(OPTIONAL), 4: text("sample_id"), 6: i32(UTF8), 10: struct({1: struct({})})})
    yield struct({1: i32(INT32), 3: i32(OPTIONAL), 4: text("label")})
    yield struct({3: i32(OPTIONAL), 4: text("image"), 5: i32(1), 6: i32(LIST), 10: struct({3: struct({})})})
    yield struct({3: i32(REPEATED), 4: text("list"), 5: i32(1)})
    eight_bits = struct({10: struct({1: (3, bytes([8])), 2: (2, b"")})})  # INTEGER(8, unsigned)
    yield struct({1: i32(INT32), 3: i32(OPTIONAL), 4: text("element"), 6: i32(UINT_8), 10: eight_bits})


def varint(value: int) -> bytes:
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    result.append(value)
    return bytes(result)


def i16(value: int) -> Field:
    return 4, varint(value << 1)  # none here is negative


def i32(value: int) -> Field:
    return 5, varint(value << 1)


def i64(value: int) -> Field:
    return 6, varint(value << 1)


def text(value: str | bytes) -> Field:
    data = value.encode() if isinstance(value, str) else value
    return 8, varint(len(data)) + data


def listed(items: Sequence[Field]) -> Field:
    kind = items[0][0] if items else 12
    head = bytes([len(items) << 4 | kind]) if len(items) < 15 else bytes([0xF0 | kind]) + varint(len(items))
    return 9, head + b"".join(data for _, data in items)


def struct(fields: Mapping[int, Field]) -> Field:
    """`fields` by number, increasing."""
    result, last = bytearray(), 0
    for number, (kind, data) in fields.items():
        result += bytes([(number - last) << 4 | kind]) + data
        last = number
    return 12, bytes(result) + b"\0"
