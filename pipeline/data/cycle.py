"""A set of rows gone through again and again: the forget and exchange sides."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from pipeline.data.batch import Batch, Side, lanes_of
from pipeline.seeding import generator

Place = tuple[int, int, int, int, int]  # step, batch size, lanes, rank, world size


class Cycle:
    """Global batches of a set of n rows: position p = step * B + i is row permutation(p // n)[p % n], each
    pass its own permutation.

    Ranks take their lanes' positions as on the retain side, so every world size sees the same global batches.
    Of rows that are not in memory those of the next step are read while one is trained on.
    """

    def __init__(self, side: Side, seed: int, name: str) -> None:
        if not len(side):
            raise ValueError(f"the {name} side has no rows, expected at least one")
        self.side, self.seed, self.name = side, seed, name
        self._permutation = lru_cache(maxsize=4)(self._draw_permutation)
        self._reader = None if isinstance(side, Batch) else ThreadPoolExecutor(1, f"{name} rows")
        self._ahead: tuple[Place, Future[Batch]] | None = None

    def take(self, step: int, batch_size: int, lanes: int, rank: int, world_size: int) -> Batch:
        """The rank's part of global batch `step`; `occurrence` is the pass number."""
        place = (step, batch_size, lanes, rank, world_size)
        if self._reader is None:
            return self._rows(place)
        rows = self._ahead[1].result() if self._ahead and self._ahead[0] == place else self._rows(place)
        following = (step + 1, *place[1:])
        self._ahead = (following, self._reader.submit(self._rows, following))
        return rows

    def _rows(self, place: Place) -> Batch:
        step, batch_size, lanes, rank, world_size = place
        n, b = len(self.side), batch_size // lanes
        positions = [
            step * batch_size + lane * b + i for lane in lanes_of(lanes, rank, world_size) for i in range(b)
        ]
        rows = self.side.take([int(self._permutation(p // n)[p % n]) for p in positions])
        return replace(rows, occurrence=tuple(p // n for p in positions))

    def _draw_permutation(self, number: int) -> Tensor:
        return torch.randperm(len(self.side), generator=generator(self.seed, self.name, number))
