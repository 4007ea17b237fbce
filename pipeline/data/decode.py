"""From Parquet tables to batches. Apart from parquet_shards.py, whose tasks do without torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import torch

from models.pixels import pixels_to_unit
from pipeline.data import parquet_shards
from pipeline.data.batch import Batch
from pipeline.data.parquet_shards import File, Kind, Statistics, tensor_columns, tensor_values


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The N rows of a table taken apart once, as they are stored, so that every batch of them is a slice."""

    sample_id: list[str]
    occurrence: list[int]
    label: np.ndarray  # (N,)
    # each (N, ...): the image, or the latent's mean and standard deviation; views of the table
    tensors: list[np.ndarray]


def columns_of(table: pa.Table, kind: Kind, shape: Sequence[int]) -> Columns:
    return Columns(
        sample_id=table["sample_id"].to_pylist(),
        occurrence=table["draw"].to_pylist() if "draw" in table.column_names else [0] * table.num_rows,
        label=table["label"].to_numpy(),
        tensors=[tensor_values(table[name], kind, shape) for name in tensor_columns(kind)],
    )


@dataclass(frozen=True)
class Units:
    """From an encoder's latents (N, C, H, W) to what the model sees: (z - mean) / std channel by channel,
    where there are statistics, times `scale`."""

    scale: float = 1.0
    statistics: Statistics | None = None

    def mean(self, values: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(values).float()
        if self.statistics is not None:
            x = x.sub_(by_channel(self.statistics.mean)).div_(by_channel(self.statistics.std))
        return x.mul_(self.scale)

    def deviation(self, values: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(values).float()
        if self.statistics is not None:
            x = x.div_(by_channel(self.statistics.std))
        return x.mul_(self.scale)

    def stored(self, x: torch.Tensor) -> torch.Tensor:
        """The latents (N, C, H, W) that the model sees as x."""
        z = x / self.scale
        if self.statistics is not None:
            z = z * by_channel(self.statistics.std).to(z) + by_channel(self.statistics.mean).to(z)
        return z


def by_channel(values: Sequence[float]) -> torch.Tensor:
    """(C, 1, 1)."""
    return torch.tensor(values).view(-1, 1, 1)


PLAIN = Units()


def batch_of(parts: Sequence[Columns], at: slice, kind: Kind, units: Units = PLAIN) -> Batch:
    """The rows `at` of each part, one part after the other, stored latents in the model's `units`."""
    tensors = [
        np.concatenate(values) for values in zip(*([tensor[at] for tensor in part.tensors] for part in parts))
    ]
    std = None
    if kind == "image":
        mean = pixels_to_unit(tensors[0])
    else:
        mean, std = units.mean(tensors[0]), units.deviation(tensors[1])
    return Batch(
        sample_id=tuple(chain.from_iterable(part.sample_id[at] for part in parts)),
        occurrence=tuple(chain.from_iterable(part.occurrence[at] for part in parts)),
        y=torch.from_numpy(np.concatenate([part.label[at] for part in parts]).astype(np.int64)),
        mean=mean,
        std=std,
    )


def read_batch(
    root: str,
    files: Iterable[File],
    kind: Kind,
    shape: Sequence[int],
    units: Units,
    *,
    without: Mapping[str, Sequence[int]] | None = None,
) -> Batch:
    """All rows of `files` under `root` in memory, digests checked; none of them is a batch of no rows.
    `without`: by a file's path, the indices of rows that are left out."""
    gone = without or {}
    tables = [
        parquet_shards.drop_rows(parquet_shards.read(root, file), gone.get(file.path, ())) for file in files
    ]
    table = pa.concat_tables([parquet_shards.schema(kind, shape).empty_table(), *tables])
    return batch_of([columns_of(table, kind, shape)], slice(None), kind, units)
