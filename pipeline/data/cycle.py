"""A small set held in memory and gone through again and again: the forget and exchange sides."""

from dataclasses import replace
from functools import lru_cache

import torch

from pipeline.data.batch import Batch, lanes_of
from pipeline.seeding import generator


class Cycle:
    """Global batches of a set of n rows: position p = step * B + i is row permutation(p // n)[p % n], each
    pass its own permutation.

    Ranks take their lanes' positions as on the retain side, so every world size sees the same global batches.
    """

    def __init__(self, batch: Batch, seed: int, name: str) -> None:
        if not len(batch):
            raise ValueError(f"the {name} side has no rows, expected at least one")
        self.batch, self.seed, self.name = batch, seed, name
        self._permutation = lru_cache(maxsize=4)(self._draw_permutation)

    def take(self, step: int, batch_size: int, lanes: int, rank: int, world_size: int) -> Batch:
        """The rank's part of global batch `step`; `occurrence` is the pass number."""
        n, b = len(self.batch), batch_size // lanes
        positions = [
            step * batch_size + lane * b + i for lane in lanes_of(lanes, rank, world_size) for i in range(b)
        ]
        rows = self.batch.take([self._permutation(p // n)[p % n] for p in positions])
        return replace(rows, occurrence=tuple(p // n for p in positions))

    def _draw_permutation(self, number: int) -> list[int]:
        return torch.randperm(len(self.batch), generator=generator(self.seed, self.name, number)).tolist()
