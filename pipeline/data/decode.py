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
from pipeline.data.parquet_shards import File, Kind, tensor_columns, tensor_values


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


def batch_of(parts: Sequence[Columns], at: slice, kind: Kind, scale: float = 1.0) -> Batch:
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
    scale: float,
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
    return batch_of([columns_of(table, kind, shape)], slice(None), kind, scale)
