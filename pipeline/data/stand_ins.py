"""Rows that stand in for purged ones: samples that the base model draws under the old label.

They lie among a partition's rows to forget, in files of their own, and their sample ids are nobody's image.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.data import parquet_shards
from pipeline.data.parquet_shards import Kind, Shard, Stored

MARK = "~stand-in"  # ends their sample ids


class StandInFacts(Stored):
    """What a result and a certificate say of them."""

    weights_digest: str  # of the model that drew them
    samples: dict[int, int]  # class -> how many
    recognised: dict[int, float]  # class -> the share that the judge takes for it
    digest: str  # SHA-256 of the files' digests, by class


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Samples of one class: a row's tensors (N, ...) as they are stored, and the share of them that the judge
    takes for that class."""

    tensors: list[np.ndarray]
    recognised: float


@dataclass(frozen=True, kw_only=True)
class StandIns:
    """What is to be drawn for which classes. `key`: all that decides the rows; `draw` makes those of a
    class."""

    weights_digest: str
    labels: tuple[int, ...]
    key: Mapping[str, Any]
    draw: Callable[[int], Drawn]


def write(
    root: str, stand_ins: StandIns, kind: Kind, shape: tuple[int, ...]
) -> tuple[list[Shard], StandInFacts]:
    """Draw them into `<root>/forget/`, a file a class."""
    files, recognised = [], {}
    for label in stand_ins.labels:
        drawn = stand_ins.draw(label)
        count = len(drawn.tensors[0])
        columns = {
            "sample_id": pa.array([f"{label:05d}-{k:05d}{MARK}" for k in range(count)], pa.string()),
            "label": pa.array([label] * count, pa.int32()),
            **{
                name: parquet_shards.tensor_array(values, kind)
                for name, values in zip(parquet_shards.tensor_columns(kind), drawn.tensors, strict=True)
            },
        }
        path = f"forget/stand-in-{label:05d}.parquet"
        files.append(
            parquet_shards.write(root, path, [pa.table(columns)], kind, shape, label=label, split="train")
        )
        recognised[label] = drawn.recognised
    facts = StandInFacts(
        weights_digest=stand_ins.weights_digest,
        samples={file.label: file.rows for file in files},
        recognised=recognised,
        digest=storage.digest_of([[file.label, file.sha256] for file in files]),
    )
    return files, facts
