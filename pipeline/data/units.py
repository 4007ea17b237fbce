"""From what a lake stores to what a model sees, wherever the tensors lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from models.pixels import pixels_to_unit

if TYPE_CHECKING:  # a step needs no storage
    from pipeline.data.parquet_shards import Statistics


@dataclass(frozen=True)
class Units:
    """Pixels, uint8 (N, C, H, W), become numbers in [-1, 1]. An encoder's latents (N, C, H, W) become
    (z - mean) / std channel by channel, where there are statistics, times `scale`. All float32."""

    scale: float = 1.0
    statistics: "Statistics | None" = None

    def mean(self, stored: torch.Tensor) -> torch.Tensor:
        if stored.dtype == torch.uint8:
            return pixels_to_unit(stored)
        x = stored.to(torch.float32, copy=True)
        if self.statistics is not None:
            x = x.sub_(by_channel(self.statistics.mean, x)).div_(by_channel(self.statistics.std, x))
        return x.mul_(self.scale)

    def deviation(self, stored: torch.Tensor) -> torch.Tensor:
        x = stored.to(torch.float32, copy=True)
        if self.statistics is not None:
            x = x.div_(by_channel(self.statistics.std, x))
        return x.mul_(self.scale)

    def stored(self, x: torch.Tensor) -> torch.Tensor:
        """The latents (N, C, H, W) that the model sees as x."""
        z = x / self.scale
        if self.statistics is not None:
            z = z * by_channel(self.statistics.std, z) + by_channel(self.statistics.mean, z)
        return z


def by_channel(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """(C, 1, 1)."""
    return torch.tensor(values).view(-1, 1, 1).to(like)
