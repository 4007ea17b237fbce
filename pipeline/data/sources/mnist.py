"""MNIST's idx files, gzipped or not: `train-images-idx3-ubyte[.gz]` and so on. The t10k
files are held out."""

import gzip
import io
import math
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from pydantic import Field

from pipeline import storage
from pipeline.config.base import Section
from pipeline.data.sources.base import Item, Split
from pipeline.errors import InputError

LARGEST_IDX = 1 << 30  # bytes of an unpacked file; MNIST's largest has 47 million
PARTS: tuple[tuple[str, Split], ...] = (("train", "train"), ("t10k", "heldout"))


class MnistSettings(Section):
    uri: str = Field(description="where the images are (the folder of the four files)")


class Mnist:
    """Sample ids are `mnist-<train|t10k>-<row>`, in the files' order."""

    scattered = False

    def __init__(self, uri: str) -> None:
        self.uri = storage.absolute(uri)
        self.classes = [str(digit) for digit in range(10)]

    def items(self) -> list[Item]:
        items = []
        for part, split in PARTS:
            labels, images = _idx(self._file(part, "labels", 1), 1), _idx(self._file(part, "images", 3), 3)
            if len(labels) != len(images):
                raise InputError(
                    f"source: {self.uri} has {len(images)} {part} images and {len(labels)} labels, expected"
                    " as many"
                )
            if labels.size and labels.max() > 9:
                raise InputError(
                    f"source: got label {labels.max()} among the {part} labels of {self.uri}, expected 0..9"
                )
            items += [
                Item(sample_id=f"mnist-{part}-{i:05d}", label=int(y), split=split, ref=f"{part}#{i}")
                for i, y in enumerate(labels)
            ]
        return items

    def read(self, items: Sequence[Item]) -> Iterator[np.ndarray]:
        """uint8 (28, 28, 1)."""
        for item in items:
            part, _, row = item.ref.partition("#")
            yield _idx(self._file(part, "images", 3), 3)[int(row)][..., None]

    def _file(self, part: str, content: str, dimensions: int) -> str:
        return _found(self.uri, part, content, dimensions)


@lru_cache(maxsize=8)
def _found(uri: str, part: str, content: str, dimensions: int) -> str:
    names = [
        f"{part}-{content}{dash}idx{dimensions}-ubyte{suffix}" for dash in "-." for suffix in ("", ".gz")
    ]
    for name in names:
        if storage.exists(storage.join(uri, name)):
            return storage.join(uri, name)
    raise InputError(
        f"source.uri: {uri!r} has no {names[0]}, with or without .gz; expected the four MNIST files"
    )


@lru_cache(maxsize=4)
def _idx(file: str, dimensions: int) -> np.ndarray:
    """An idx file's array: two zero bytes, type 8 (unsigned byte), the number of dimensions, their big-endian
    sizes, the data."""
    if (size := storage.size(file)) > LARGEST_IDX:
        raise InputError(
            f"source: {file} has {size} bytes, expected MNIST's idx format: at most {LARGEST_IDX}"
        )
    raw = io.BytesIO(storage.read_bytes(file))
    try:
        with gzip.open(raw) if file.endswith(".gz") else raw as unpacked:
            header = unpacked.read(4 + 4 * dimensions)
            magic = bytes([0, 0, 8, dimensions])
            if header[:4] != magic:
                raise ValueError(f"it begins with {header[:4].hex(' ')}, not {magic.hex(' ')}")
            shape = np.frombuffer(header, ">u4", dimensions, 4).tolist()
            if (size := math.prod(shape)) > LARGEST_IDX:
                raise ValueError(f"it is said to hold {size} bytes, more than {LARGEST_IDX}")
            data = unpacked.read(size + 1)  # not all that a small .gz may unpack to
        return np.frombuffer(data, np.uint8).reshape(shape)
    except (ValueError, IndexError, EOFError, OSError, zlib.error) as error:
        raise InputError(
            f"source: {file} is damaged ({error}), expected MNIST's idx format: fetch it again"
        ) from error
