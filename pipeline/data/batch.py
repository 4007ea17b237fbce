"""Rows in memory on their way to the step: one type for pixels and latents, and which lanes of a global batch
a rank holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """N rows in [-1, 1] (pixels) or in the encoder's scaled units (latents).

    `std` is the latent posterior's standard deviation (each step samples mean + std * eps), None for pixels.
    `occurrence` counts how often the same sample came before in this stream: with the sample id it keys the
    row's noise.
    """

    sample_id: tuple[str, ...]
    occurrence: tuple[int, ...]
    y: Tensor  # (N,) int64
    mean: Tensor  # (N, C, H, W) float32
    std: Tensor | None = None  # (N, C, H, W) float32

    def __len__(self) -> int:
        return len(self.sample_id)

    def take(self, index: Sequence[int] | slice) -> "Batch":
        """The rows at `index`, in that order."""
        positions = range(len(self))[index] if isinstance(index, slice) else index
        rows = torch.as_tensor(list(positions), dtype=torch.long)
        return Batch(
            sample_id=tuple(self.sample_id[i] for i in positions),
            occurrence=tuple(self.occurrence[i] for i in positions),
            y=self.y[rows],
            mean=self.mean[rows],
            std=None if self.std is None else self.std[rows],
        )


def lanes_of(lanes: int, rank: int, world_size: int) -> range:
    """The lanes of `rank`. Raises `ValueError` when `world` does not divide them."""
    if not 0 <= rank < world_size or lanes % world_size:
        raise ValueError(
            f"got rank {rank} of {world_size} for {lanes} lanes, expected a world size that divides the lanes"
        )
    return range(rank, lanes, world_size)
