"""Rows on their way from Parquet to the step: one batch type for pixels and latents."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.data.shards import Kind, tensor_values


@dataclass(frozen=True, kw_only=True)
class Batch:
    """N rows in [-1, 1] (pixels) or in the encoder's scaled units (latents).

    `std` is the latent posterior's standard deviation (each step draws mean + std * eps), None for pixels.
    `draw` counts how often the same sample was drawn before in this stream: with the sample id it keys the row's noise.
    """

    sample_id: tuple[str, ...]
    draw: tuple[int, ...]
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
            draw=tuple(self.draw[i] for i in positions),
            y=self.y[rows],
            mean=self.mean[rows],
            std=None if self.std is None else self.std[rows],
        )


def pixels_to_unit(image: np.ndarray) -> Tensor:
    """uint8 (N, H, W, C) -> float32 (N, C, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(image, copy=True)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()


def unit_to_pixels(x: Tensor) -> np.ndarray:
    """float (N, C, H, W) in [-1, 1] (clipped) -> uint8 (N, H, W, C)."""
    return ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def batch_of(table: pa.Table, kind: Kind, shape: Sequence[int], scale: float = 1.0) -> Batch:
    """Rows of a lake or a partition as a batch; stored latents are multiplied by `scale`, the encoder's factor."""
    draw = table["draw"].to_pylist() if "draw" in table.column_names else [0] * table.num_rows
    std = None
    if kind == "image":
        mean = pixels_to_unit(tensor_values(table["image"], kind, shape))
    else:
        mean, std = (
            torch.from_numpy(np.array(tensor_values(table[name], kind, shape), copy=True)).float().mul_(scale)
            for name in ("latent_mean", "latent_std")
        )
    y = torch.from_numpy(table["label"].to_numpy().astype(np.int64))
    return Batch(sample_id=tuple(table["sample_id"].to_pylist()), draw=tuple(draw), y=y, mean=mean, std=std)
