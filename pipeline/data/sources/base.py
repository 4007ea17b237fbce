"""What every source of raw images gives: a list of items, and their content on demand."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from pipeline.errors import InputError

Split = Literal["train", "heldout"]


@dataclass(frozen=True, slots=True)
class Item:
    """One raw image. `ref` is where the source finds it again; nothing else reads it."""

    sample_id: str
    label: int
    split: Split
    ref: str


Raw = bytes | np.ndarray  # an encoded image, or uint8 (H, W, C)


class RawImages(Protocol):
    """A source. It is pickled to the workers, so it holds settings and no open files."""

    @property
    def classes(self) -> Sequence[str]:
        """Class names; the label is the index."""
        ...

    def list(self) -> Sequence[Item]:
        """Every image, in any order. Raises `InputError` when the source is missing, empty or contradicts itself."""
        ...

    def read(self, items: Sequence[Item]) -> Iterator[Raw]:
        """The content of `items`, in their order. Raises when storage fails; a damaged image is the reader's to find."""
        ...


def hold_out(items: Iterable[Item], share: float) -> list[Item]:
    """`items` with round(share * n) of each class's n marked heldout: those whose sample ids hash lowest, so
    the choice depends on the ids alone, never on the order of listing."""
    by_label: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        by_label[item.label].append(item)
    result = []
    for label in sorted(by_label):
        ordered = sorted(by_label[label], key=lambda item: hashlib.sha256(item.sample_id.encode()).digest())
        kept_out = round(share * len(ordered))
        result += [replace(item, split="heldout" if i < kept_out else "train") for i, item in enumerate(ordered)]
    return result


def require_unique(items: Sequence[Item]) -> None:
    """Raise `InputError` when two items share a sample id: requests and held-out choices go by it."""
    seen: dict[str, str] = {}
    for item in items:
        if item.sample_id in seen:
            raise InputError(
                f"source: got two images with the sample id {item.sample_id!r} ({seen[item.sample_id]} and {item.ref}), "
                "expected every sample id once: rename one of them"
            )
        seen[item.sample_id] = item.ref
