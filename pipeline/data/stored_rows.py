"""Rows that stay where they are stored: a side too large for every worker's memory, read as it is asked for.

What is held of a row is its id, its label and where its bytes lie: some 150 bytes in place of 16 kB of a
latent.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.data import sparse_rows
from pipeline.data.batch import Batch
from pipeline.data.decode import Columns, batch_of
from pipeline.data.parquet_shards import Kind, Shard
from pipeline.data.sparse_rows import Located
from pipeline.data.units import Units

READERS = 16  # files looked through at once: a store answers each request after some 30 ms


@dataclass(frozen=True, kw_only=True)
class StoredRows:
    """N rows of `files`, a `Side`. `file` and `row`, (N,) each: the file of each row and its place there."""

    files: Sequence[Located]
    file: np.ndarray
    row: np.ndarray
    sample_id: tuple[str, ...]
    y: Tensor  # (N,) int64
    kind: Kind
    shape: tuple[int, ...]  # of a row as it is stored
    units: Units

    def __len__(self) -> int:
        return len(self.sample_id)

    def take(self, index: Sequence[int] | slice) -> Batch:
        """The rows at `index`, in that order, read now."""
        places = np.arange(len(self))[index] if isinstance(index, slice) else np.array(index, np.int64)
        part = Columns(
            sample_id=[self.sample_id[place] for place in places],
            occurrence=[0] * len(places),
            label=self.y.numpy()[places],
            tensors=sparse_rows.tensors(
                self.files, self.file[places], self.row[places], self.kind, self.shape
            ),
        )
        # taken once more, as rows in memory are: the numbers then lie in the same order in memory as theirs
        return batch_of([part], slice(None), self.units).take(range(len(places)))

    def chosen(self, index: Sequence[int], y: Tensor | None = None) -> "StoredRows":
        """The rows at `index`, in that order, without reading them; under the labels `y` if given."""
        places = np.array(index, np.int64)
        return replace(
            self,
            file=self.file[places],
            row=self.row[places],
            sample_id=tuple(self.sample_id[place] for place in places),
            y=self.y[torch.from_numpy(places)] if y is None else y,
        )


def open_rows(
    root: str, files: Sequence[Shard], kind: Kind, shape: Sequence[int], units: Units
) -> StoredRows:
    """All rows of `files` under `root`, one file after the other: their ids are read, and where they lie.
    Raises `RuntimeError` where a file is not what its manifest says."""
    locate = partial(sparse_rows.locate, root, kind=kind, shape=shape)
    with ThreadPoolExecutor(READERS) as pool:
        located = list(pool.map(locate, files))
    counts = [file.rows for file in files]
    return StoredRows(
        files=located,
        file=np.repeat(np.arange(len(files)), counts),
        row=np.concatenate([np.arange(count) for count in counts]),
        sample_id=tuple(name for file in located for name in file.sample_id),
        y=torch.tensor([file.label for file in files]).repeat_interleave(torch.tensor(counts)),
        kind=kind,
        shape=tuple(shape),
        units=units,
    )
