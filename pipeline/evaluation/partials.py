"""What the shards of a measurement add up to: named tensors, merged by addition.

Counts and sums are float64 or int64. A value that belongs to one place (a verdict, a row of features) stands
in a tensor of zeros of the full size, so that adding places it: exactly, whatever the number of shards.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

Sums = dict[str, Tensor]


class Ranks(Protocol):
    """Who shares the work: a process group, or shards that are merged elsewhere."""

    rank: int
    world: int

    def sum(self, buffer: Tensor) -> Tensor: ...


class Shard:
    """One of `world` shards whose sums somebody else adds."""

    def __init__(self, rank: int = 0, world: int = 1):
        self.rank, self.world = rank, world

    def sum(self, buffer: Tensor) -> Tensor:
        return buffer


def tally(into: Sums, name: str, value: Tensor) -> None:
    """Add `value` to the sum called `name`."""
    into[name] = into[name] + value if name in into else value


def added(parts: Iterable[Mapping[str, Tensor]]) -> Sums:
    """The sums of all parts together; a name that a part lacks counts as zero there."""
    whole: Sums = {}
    for part in parts:
        for name, value in part.items():
            tally(whole, name, value)
    return whole


def below(sums: Mapping[str, Tensor], prefix: str) -> Sums:
    """The sums whose name starts with `prefix/`, without it."""
    return {
        name.removeprefix(f"{prefix}/"): value
        for name, value in sums.items()
        if name.startswith(f"{prefix}/")
    }


def blocks(n: int, size: int, rank: int, world: int) -> Iterator[list[int]]:
    """Positions 0 to n - 1 cut into blocks of `size`, every world-th block from `rank` on.

    What is computed together never depends on how many share the work: floating point then gives the same
    numbers to the last bit.
    """
    for start in range(rank * size, n, world * size):
        yield list(range(start, min(start + size, n)))


def placed(length: int, positions: list[int], values: Tensor) -> Tensor:
    """Zeros of (length, ...) with `values` (len(positions), ...) at `positions`."""
    whole = torch.zeros((length, *values.shape[1:]), dtype=values.dtype)
    whole[positions] = values
    return whole
