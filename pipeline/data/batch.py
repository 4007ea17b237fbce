"""Rows on their way from Parquet to the step: one batch type for pixels and latents."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.data.parquet_shards import Kind, tensor_columns, tensor_values


@dataclass(frozen=True, kw_only=True)
class Batch:
    """N rows in [-1, 1] (pixels) or in the encoder's scaled units (latents).

    `std` is the latent posterior's standard deviation (each step draws mean + std * eps), None for pixels.
    `draw` counts how often the same sample was drawn before in this stream: with the sample id it keys the
    row's noise.
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


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The N rows of a table taken apart once, as they are stored, so that every batch of them is a slice."""

    sample_id: list[str]
    draw: list[int]
    label: np.ndarray  # (N,)
    # each (N, ...): the image, or the latent's mean and standard deviation; views of the table
    tensors: list[np.ndarray]


def pixels_to_unit(image: np.ndarray) -> Tensor:
    """uint8 (N, H, W, C) -> float32 (N, C, H, W) in [-1, 1]."""
    return torch.from_numpy(image).permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1.0)


def unit_to_pixels(x: Tensor) -> np.ndarray:
    """float (N, C, H, W) in [-1, 1] (clipped) -> uint8 (N, H, W, C)."""
    return (
        ((x.detach().float().clamp(-1, 1) + 1) * 127.5)
        .round()
        .to(torch.uint8)
        .permute(0, 2, 3, 1)
        .cpu()
        .numpy()
    )


def rows_of(table: pa.Table, kind: Kind, shape: Sequence[int]) -> Rows:
    return Rows(
        sample_id=table["sample_id"].to_pylist(),
        draw=table["draw"].to_pylist() if "draw" in table.column_names else [0] * table.num_rows,
        label=table["label"].to_numpy(),
        tensors=[tensor_values(table[name], kind, shape) for name in tensor_columns(kind)],
    )


def batch_of(parts: Sequence[Rows], at: slice, kind: Kind, scale: float = 1.0) -> Batch:
    """The rows `at` of each part, one part after the other; stored latents are multiplied by `scale`, the
    encoder's factor."""
    tensors = [
        np.concatenate(values) for values in zip(*([tensor[at] for tensor in part.tensors] for part in parts))
    ]
    std = None
    if kind == "image":
        mean = pixels_to_unit(tensors[0])
    else:
        mean, std = (torch.from_numpy(values).float().mul_(scale) for values in tensors)
    return Batch(
        sample_id=tuple(chain.from_iterable(part.sample_id[at] for part in parts)),
        draw=tuple(chain.from_iterable(part.draw[at] for part in parts)),
        y=torch.from_numpy(np.concatenate([part.label[at] for part in parts]).astype(np.int64)),
        mean=mean,
        std=std,
    )
