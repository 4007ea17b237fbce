"""From Parquet tables to batches. Apart from parquet_shards.py, whose tasks do without torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import torch

from pipeline.data import parquet_shards
from pipeline.data.batch import Batch
from pipeline.data.parquet_shards import File, Kind, integers, tensor_columns, tensor_values
from pipeline.data.units import Units

PLAIN = Units()


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
        label=integers(table["label"]),
        tensors=[tensor_values(table[name], kind, shape) for name in tensor_columns(kind)],
    )


def batch_of(parts: Sequence[Columns], at: slice, units: Units = PLAIN, *, pinned: bool = False) -> Batch:
    """The rows `at` of each part, one part after the other, copied once; `pinned`: into memory that a GPU
    copies from. `units`: of stored latents."""
    return Batch(
        sample_id=tuple(chain.from_iterable(part.sample_id[at] for part in parts)),
        occurrence=tuple(chain.from_iterable(part.occurrence[at] for part in parts)),
        y=torch.from_numpy(np.concatenate([part.label[at] for part in parts]).astype(np.int64)),
        stored=tuple(
            _joined([tensor[at] for tensor in tensors], pinned)
            for tensors in zip(*(part.tensors for part in parts))
        ),
        units=units,
    )


def _joined(parts: Sequence[np.ndarray], pinned: bool) -> torch.Tensor:
    dtype = torch.uint8 if parts[0].dtype == np.uint8 else torch.float16
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    joined = torch.empty(shape, dtype=dtype, pin_memory=pinned)  # torch keeps such memory and uses it again
    np.concatenate(parts, out=joined.numpy())
    return joined.permute(0, 3, 1, 2) if dtype == torch.uint8 else joined  # (N, C, H, W)


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
    tables = (
        parquet_shards.drop_rows(parquet_shards.read(root, file), gone.get(file.path, ())) for file in files
    )
    parts = [columns_of(table, kind, shape) for table in tables]
    nothing = parquet_shards.schema(kind, shape).empty_table()
    return batch_of(parts or [columns_of(nothing, kind, shape)], slice(None), units)
