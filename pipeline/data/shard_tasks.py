"""The shards of a lake as tasks: what goes into each, making one, and remembering those that are done."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.config import PrepareConfig
from pipeline.data import shards
from pipeline.data.encoder import Plan
from pipeline.data.lake import SCHEMA_VERSION
from pipeline.data.preprocess import Unreadable, to_pixels
from pipeline.data.shards import FLIP_MARK, Shard, Stored
from pipeline.data.sources.base import Item, RawImages, Split

SHARD_BYTES = 128 << 20  # pixels a task holds at once
PROGRESS = "progress"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One shard to make: its place, what goes into it and how."""

    root: str
    path: str
    label: int
    split: Split
    items: tuple[Item, ...]
    source: RawImages
    shape: tuple[int, int, int]  # of the pixels
    flip: bool
    rows: Plan  # what they become


class Rejected(Stored):
    sample_id: str
    label: int
    ref: str
    reason: str


class Made(Stored):
    """What became of a task. `shard` is None when none of its images could be used."""

    task: str  # its digest
    items: int
    shard: Shard | None
    rejected: list[Rejected]


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """The decoded images of a task: N rows, flips included."""

    sample_ids: list[str]
    images: np.ndarray  # (N, H, W, C) uint8
    rejected: list[Rejected]


def plan(items: Sequence[Item], source: RawImages, uri: str, config: PrepareConfig, rows_as: Plan) -> list[Task]:
    """The shards to make: per class and split, by sample id."""
    shape, flip = config.prepare.shape, config.prepare.flip
    fitting = max(1, SHARD_BYTES // shards.row_bytes("image", shape) // (2 if flip else 1))
    rows = min(config.prepare.shard_rows, fitting)
    groups: dict[tuple[int, Split], list[Item]] = defaultdict(list)
    for item in items:
        groups[item.label, item.split].append(item)
    tasks = []
    for (label, split), members in sorted(groups.items()):
        members.sort(key=lambda item: item.sample_id)
        for part, first in enumerate(range(0, len(members), rows)):
            path = f"data/label={label:05d}/{'part' if split == 'train' else split}-{part:05d}.parquet"
            tasks.append(
                Task(
                    root=uri,
                    path=path,
                    label=label,
                    split=split,
                    items=tuple(members[first : first + rows]),
                    source=source,
                    shape=shape,
                    flip=flip and split == "train",
                    rows=rows_as,
                )
            )
    return tasks


def read_pixels(task: Task) -> Pixels:
    """Read, decode and transform the task's images. One that cannot be used is named with its reason; failing storage raises."""
    ids: list[str] = []
    images = np.empty((len(task.items) * (2 if task.flip else 1), *task.shape), np.uint8)
    rejected = []
    for item, raw in zip(task.items, task.source.read(task.items), strict=True):
        try:
            pixels = to_pixels(raw, task.shape)
        except Unreadable as error:
            rejected.append(Rejected(sample_id=item.sample_id, label=item.label, ref=item.ref, reason=str(error)))
            continue
        images[len(ids)] = pixels
        ids.append(item.sample_id)
        if task.flip:
            images[len(ids)] = pixels[:, ::-1]
            ids.append(item.sample_id + FLIP_MARK)
    return Pixels(sample_ids=ids, images=images[: len(ids)], rejected=rejected)


def image_columns(images: np.ndarray) -> dict[str, pa.Array]:
    return {"image": shards.tensor_array(images, "image")}


def write_shard(task: Task, pixels: Pixels, columns: Callable[[np.ndarray], dict[str, pa.Array]] = image_columns) -> Made:
    """Write the task's rows, their tensors by `columns`, then note that it is done: a killed run need not do it again."""
    shard = None
    if pixels.sample_ids:
        labels = pa.array([task.label] * len(pixels.sample_ids), pa.int32())
        table = pa.table({"sample_id": pixels.sample_ids, "label": labels, **columns(pixels.images)})
        shard = shards.write(task.root, task.path, [table], task.rows.kind, task.rows.shape, label=task.label, split=task.split)
        shards.require_rows(storage.join(task.root, task.path), shard.rows, len(pixels.sample_ids))
    made = Made(task=task_digest(task), items=len(task.items), shard=shard, rejected=pixels.rejected)
    storage.write_json(_note(task), made.model_dump(mode="json"))
    return made


def make_shard(task: Task) -> Made:
    """One shard of pixels, from the raw images to the file."""
    return write_shard(task, read_pixels(task))


def finished(tasks: Sequence[Task], uri: str) -> Iterator[tuple[Task, Made | None]]:
    """Each task with what an earlier run noted of it, None when it is still to be made, or was made of other images."""
    noted = set(storage.walk(storage.join(uri, PROGRESS)))
    for task in tasks:
        name = _note(task).removeprefix(storage.join(uri, PROGRESS) + "/")
        made = Made.model_validate(storage.read_json(_note(task))) if name in noted else None
        yield task, made if made is not None and made.task == task_digest(task) else None


def task_digest(task: Task) -> str:
    """What the shard is made of: images (by place), shape, flips, encoder."""
    text = hashlib.sha256(f"{SCHEMA_VERSION} {task.path} {task.shape} {task.flip} {task.rows.encoding}".encode())
    for item in task.items:
        text.update(f"\x1e{item.sample_id}\x1f{item.label}\x1f{item.ref}".encode())
    return text.hexdigest()


def remove_leftovers(uri: str, kept: Sequence[Shard]) -> None:
    """Remove the notes, and what a killed run left beside the shards that the manifest names."""
    storage.remove(storage.join(uri, PROGRESS))
    named: set[str] = {shard.path for shard in kept}
    for name in storage.walk(storage.join(uri, "data")):
        if f"data/{name}" not in named:
            storage.remove(storage.join(uri, "data", name))


def rejected_table(rejected: Sequence[Rejected]) -> pa.Table:
    rows: list[dict[str, Any]] = [item.model_dump() for item in sorted(rejected, key=lambda item: item.sample_id)]
    columns = [("sample_id", pa.string()), ("label", pa.int32()), ("ref", pa.string()), ("reason", pa.string())]
    return pa.Table.from_pylist(rows, schema=pa.schema(columns))


def _note(task: Task) -> str:
    return storage.join(task.root, PROGRESS, task.path.removeprefix("data/").replace("/", "-") + ".json")
