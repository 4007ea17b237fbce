"""Rows on their way to the step: one type for pixels and latents in memory, what a set of rows can be asked
wherever it lies, and which lanes of a global batch a rank holds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor

from pipeline.data.units import Units


class Side(Protocol):
    """N rows that a run goes through again and again, forgotten ones or those of the exchange classes: in
    memory (`Batch`) or where they are stored (`StoredRows`)."""

    @property
    def sample_id(self) -> tuple[str, ...]: ...

    @property
    def y(self) -> Tensor:
        """(N,) int64"""

    def __len__(self) -> int: ...

    def take(self, index: Sequence[int] | slice) -> "Batch":
        """The rows at `index`, in that order, in memory."""

    def chosen(self, index: Sequence[int], y: Tensor | None = None) -> Self:
        """The rows at `index`, in that order, where they lie; under the labels `y` (len(index),) if given."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """N rows as they are stored, in half or a quarter of the memory; `mean` and `std` are what a model sees.

    `occurrence` counts how often the same sample came before in this stream: with the sample id it keys the
    row's noise.
    """

    sample_id: tuple[str, ...]
    occurrence: tuple[int, ...]
    y: Tensor  # (N,) int64
    # (N, C, H, W) each: uint8 pixels, or a latent's mean and standard deviation in fp16; without `units` what
    # a model sees
    stored: tuple[Tensor, ...]
    units: Units | None = None

    @staticmethod
    def of(
        *,
        sample_id: tuple[str, ...],
        occurrence: tuple[int, ...],
        y: Tensor,
        mean: Tensor,
        std: Tensor | None = None,
    ) -> "Batch":
        """Rows that are what a model sees, (N, C, H, W), already."""
        tensors = (mean,) if std is None else (mean, std)
        return Batch(sample_id=sample_id, occurrence=occurrence, y=y, stored=tensors)

    @cached_property
    def mean(self) -> Tensor:
        """(N, C, H, W) float32: pixels in [-1, 1], or the latent's mean in the encoder's scaled units."""
        return self.stored[0] if self.units is None else self.units.mean(self.stored[0])

    @cached_property
    def std(self) -> Tensor | None:
        """(N, C, H, W) float32: the latent posterior's standard deviation (each step samples
        mean + std * eps), None for pixels."""
        if len(self.stored) == 1:
            return None
        return self.stored[1] if self.units is None else self.units.deviation(self.stored[1])

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
            stored=tuple(tensor[rows] for tensor in self.stored),
            units=self.units,
        )

    def chosen(self, index: Sequence[int], y: Tensor | None = None) -> "Batch":
        """The rows at `index`, in that order; under the labels `y` if given."""
        rows = self.take(index)
        return rows if y is None else replace(rows, y=y)

    def joined(self, other: "Batch") -> "Batch":
        """These rows, then those of `other`, which are stored alike."""
        return Batch(
            sample_id=self.sample_id + other.sample_id,
            occurrence=self.occurrence + other.occurrence,
            y=torch.cat([self.y, other.y]),
            stored=tuple(torch.cat(tensors) for tensors in zip(self.stored, other.stored, strict=True)),
            units=self.units,
        )

    def stored_on(self, device: torch.device) -> "Batch":
        """The rows' tensors on `device`, where they are then widened. To a GPU from pinned memory, so that
        the copy goes on beside other work."""
        if device.type == "cpu":
            return self
        tensors = (tensor.pin_memory() if device.type == "cuda" else tensor for tensor in self.stored)
        return replace(self, stored=tuple(tensor.to(device, non_blocking=True) for tensor in tensors))


def lanes_of(lanes: int, rank: int, world_size: int) -> range:
    """The lanes of `rank`. Raises `ValueError` when `world` does not divide them."""
    if not 0 <= rank < world_size or lanes % world_size:
        raise ValueError(
            f"got rank {rank} of {world_size} for {lanes} lanes, expected a world size that divides the lanes"
        )
    return range(rank, lanes, world_size)
