"""What the shards of an evaluation add up to: named tensors, merged by addition.

Counts and sums are float64 or int64. A value that belongs to one place (a prediction, a row of features)
stands in a tensor of zeros of the full size, so that adding puts it there: exactly, whatever the number of
shards.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

Partials = dict[str, Tensor]


class Ranks(Protocol):
    """Who shares the work: a process group, or shards that are merged elsewhere."""

    rank: int
    world_size: int

    def sum(self, buffer: Tensor) -> Tensor: ...


class Shard:
    """One of `world` shards whose partials somebody else adds."""

    def __init__(self, rank: int = 0, world_size: int = 1):
        self.rank, self.world_size = rank, world_size

    def sum(self, buffer: Tensor) -> Tensor:
        return buffer


def add_into(partials: Partials, name: str, value: Tensor) -> None:
    """Add `value` to the partial called `name`."""
    partials[name] = partials[name] + value if name in partials else value


def merge(parts: Iterable[Mapping[str, Tensor]]) -> Partials:
    """All parts together; a name that a part lacks counts as zero there."""
    whole: Partials = {}
    for part in parts:
        for name, value in part.items():
            add_into(whole, name, value)
    return whole


def all_reduce(partials: Partials, ranks: Ranks, device: torch.device) -> Partials:
    """The sums over ranks, on all of them. Collective: every rank gives the same names and shapes."""
    if ranks.world_size == 1:
        return partials
    return {name: ranks.sum(partials[name].to(device)).cpu() for name in sorted(partials)}


def below(partials: Mapping[str, Tensor], prefix: str) -> Partials:
    """The partials whose name starts with `prefix/`, without it."""
    return {
        name.removeprefix(f"{prefix}/"): value
        for name, value in partials.items()
        if name.startswith(f"{prefix}/")
    }


def blocks(n: int, size: int, rank: int, world_size: int) -> Iterator[list[int]]:
    """Positions 0 to n - 1 cut into blocks of `size`, every world-th block from `rank` on.

    What is computed together never depends on how many share the work: floating point then gives the same
    numbers to the last bit.
    """
    for start in range(rank * size, n, world_size * size):
        yield list(range(start, min(start + size, n)))


def scatter(length: int, positions: Sequence[int], values: Tensor) -> Tensor:
    """Zeros of (length, ...) with `values` (len(positions), ...) at `positions`; positions from `length`
    on are left out."""
    whole = torch.zeros((length, *values.shape[1:]), dtype=values.dtype)
    inside = [index for index, position in enumerate(positions) if position < length]
    whole[[positions[index] for index in inside]] = values[inside]
    return whole


def moments_of_values(values: Tensor) -> Tensor:
    """(3,) count, sum and sum of squares of `values`, float64: what shards add for a mean and its
    interval."""
    values = values.double().cpu()
    count = torch.tensor(float(len(values)), dtype=torch.float64)
    return torch.stack([count, values.sum(), values.square().sum()])
