"""The shards of a lake as tasks: what goes into each, making one, and remembering those that are done."""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.config import PrepareConfig
from pipeline.data import parquet_shards
from pipeline.data.image_transforms import to_pixels
from pipeline.data.lake import SCHEMA_VERSION
from pipeline.data.parquet_shards import FLIP_MARK, Shard, Stored
from pipeline.data.sources.base import Item, Raw, RawImages, Split, Unreadable
from pipeline.data.vae_encoder import Plan
from pipeline.errors import InputError

SHARD_BYTES = 128 << 20  # pixels a task holds at once
PROGRESS = "progress"
Block = tuple[list[str], np.ndarray]  # sample ids and pixels, uint8 (n, H, W, C), or latents


@dataclass(frozen=True, kw_only=True)
class Task:
    """One shard to make: its place, what goes into it and how."""

    root: str
    path: str
    label: int
    split: Split
    items: tuple[Item, ...]
    source: RawImages
    shape: tuple[int, int, int]  # of the pixels, or of latents that the source holds
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


def plan(
    items: Sequence[Item], source: RawImages, uri: str, config: PrepareConfig, rows_as: Plan
) -> list[Task]:
    """The shards to make: per class and split, by sample id."""
    own, flip = rows_as.weights is None, config.prepare.flip
    kind, shape = (rows_as.kind, rows_as.shape) if own else ("image", config.prepare.shape)
    fitting = max(1, SHARD_BYTES // parquet_shards.row_bytes(kind, shape) // (2 if flip else 1))
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


def pixel_rows(task: Task, rejected: list[Rejected]) -> Iterator[tuple[str, np.ndarray]]:
    """The task's images read, decoded and transformed, mirrored ones after their originals: sample id and
    pixels.

    One that cannot be used is added to `rejected` with its reason; failing storage raises.
    """
    contents = iter(task.source.read(task.items))
    for item in task.items:
        try:
            pixels = to_pixels(content(contents, item), task.shape)
        except Unreadable as error:
            rejected.append(
                Rejected(sample_id=item.sample_id, label=item.label, ref=item.ref, reason=str(error))
            )
            continue
        yield item.sample_id, pixels
        if task.flip:
            yield item.sample_id + FLIP_MARK, pixels[:, ::-1]


def latent_rows(task: Task, rejected: list[Rejected]) -> Iterator[tuple[str, np.ndarray]]:
    """The same of a source of latents, float16 (C, H, W); a mirror image's comes from there as well."""
    contents = iter(task.source.read(task.items))
    for item in task.items:
        values = content(contents, item)
        if isinstance(values, Unreadable):
            rejected.append(
                Rejected(sample_id=item.sample_id, label=item.label, ref=item.ref, reason=str(values))
            )
            continue
        assert isinstance(values, np.ndarray)
        yield item.sample_id, values[0]
        if task.flip:
            yield item.sample_id + FLIP_MARK, values[1]


def content(contents: Iterator[Raw], item: Item) -> Raw:
    """The next of `contents`, which is that of `item`: where it cannot be had the error names the item, also
    through Ray. Raises `InputError`, or `StorageError` for anything else."""
    try:
        return next(contents)
    except StopIteration:
        raise storage.StorageError(f"{item.ref}: the source gave no content for it") from None
    except (InputError, storage.StorageError):
        raise
    except Exception as error:
        raise storage.StorageError(f"could not read {item.ref}: {type(error).__name__}: {error}") from error


def blocks(
    rows: Iterable[tuple[str, np.ndarray]],
    shape: Sequence[int],
    size: int,
    dtype: type[np.generic] = np.uint8,
) -> Iterator[Block]:
    """`rows` gathered `size` at a time. The memory is used again: a block is good until the next is asked
    for."""
    ids: list[str] = []
    images = np.empty((size, *shape), dtype)
    for sample_id, pixels in rows:
        images[len(ids)] = pixels
        ids.append(sample_id)
        if len(ids) == size:
            yield ids, images
            ids = []
    if ids:
        yield ids, images[: len(ids)]


def read_pixels(task: Task) -> Pixels:
    """All images of the task at once."""
    rejected: list[Rejected] = []
    batches = list(blocks(pixel_rows(task, rejected), task.shape, len(task.items) * (2 if task.flip else 1)))
    ids, images = batches[0] if batches else ([], np.empty((0, *task.shape), np.uint8))
    return Pixels(sample_ids=ids, images=images, rejected=rejected)


def image_columns(images: np.ndarray) -> dict[str, pa.Array]:
    return {"image": parquet_shards.tensor_array(images, "image")}


def latent_columns(values: np.ndarray) -> dict[str, pa.Array]:
    """Latents (N, C, H, W) that are no posterior: one without deviation."""
    return {
        "latent_mean": parquet_shards.tensor_array(values, "latent"),
        "latent_std": parquet_shards.tensor_array(np.zeros_like(values), "latent"),
    }


def write_shard(
    task: Task,
    read: Iterable[Block],
    rejected: list[Rejected],
    columns: Callable[[np.ndarray], dict[str, pa.Array]] = image_columns,
) -> Made:
    """Write the rows of `read`, their tensors by `columns`, then note that the task is done: a killed run
    need not do it again.

    `rejected` is looked at when everything was read.
    """
    count = 0

    def tables(first: Block, rest: Iterator[Block]) -> Iterator[pa.Table]:
        nonlocal count
        for ids, images in itertools.chain([first], rest):
            count += len(ids)
            yield pa.table(
                {"sample_id": ids, "label": pa.array([task.label] * len(ids), pa.int32()), **columns(images)}
            )

    shard, rest = None, iter(read)
    first = next(rest, None)
    if first is not None:
        shard = parquet_shards.write(
            task.root,
            task.path,
            tables(first, rest),
            task.rows.kind,
            task.rows.shape,
            label=task.label,
            split=task.split,
        )
        parquet_shards.require_rows(storage.join(task.root, task.path), shard.rows, count)
    rows_each = 2 if task.flip else 1
    parquet_shards.require_rows(
        f"the images of {task.path}", count + rows_each * len(rejected), rows_each * len(task.items)
    )
    outcome = Made(task=task_digest(task), items=len(task.items), shard=shard, rejected=rejected)
    storage.write_json(_note(task), outcome.model_dump(mode="json"))
    return outcome


def make_shard(task: Task) -> Made:
    """One shard of pixels, or of the source's own latents, from what the source gives to the file. A row
    group is in memory at a time, and still in cache when it is written."""
    rejected: list[Rejected] = []
    kind = task.rows.kind
    read, columns = (pixel_rows, image_columns) if kind == "image" else (latent_rows, latent_columns)
    size = min(parquet_shards.group_rows(kind, task.shape), len(task.items) * (2 if task.flip else 1))
    rows = blocks(read(task, rejected), task.shape, size, parquet_shards.DTYPES[kind])
    return write_shard(task, rows, rejected, columns)


def finished(tasks: Sequence[Task], uri: str) -> Iterator[tuple[Task, Made | None]]:
    """Each task with what an earlier run noted of it, None when it is still to be made, or was made of other
    images."""
    notes = set(storage.walk(storage.join(uri, PROGRESS)))
    for task in tasks:
        name = _note(task).removeprefix(storage.join(uri, PROGRESS) + "/")
        outcome = storage.read_model(_note(task), Made) if name in notes else None
        yield task, outcome if outcome is not None and outcome.task == task_digest(task) else None


def task_digest(task: Task) -> str:
    """What the shard is made of: images (by place), shape, flips, encoder."""
    text = hashlib.sha256(
        f"{SCHEMA_VERSION} {task.path} {task.shape} {task.flip} {task.rows.encoding}".encode()
    )
    for item in task.items:
        text.update(f"\x1e{item.sample_id}\x1f{item.label}\x1f{item.ref}{item.problem}".encode())
    return text.hexdigest()


def remove_rejecting(tasks: Sequence[Task], outcomes: Sequence[Made]) -> None:
    """Remove the shards in which images were rejected, and their notes: once those are mended, the same
    places are to be read again."""
    by_digest = {outcome.task: outcome for outcome in outcomes if outcome.rejected}
    for task in tasks:
        outcome = by_digest.get(task_digest(task))
        if outcome is not None:
            storage.remove(_note(task))
            if outcome.shard is not None:
                storage.remove(storage.join(task.root, outcome.shard.path))


def remove_leftovers(uri: str, shards: Sequence[Shard]) -> None:
    """Remove the notes, and what a killed run left beside the shards that the manifest names."""
    storage.remove(storage.join(uri, PROGRESS))
    paths: set[str] = {shard.path for shard in shards}
    for name in storage.walk(storage.join(uri, "data")):
        if f"data/{name}" not in paths:
            storage.remove(storage.join(uri, "data", name))


def rejected_table(rejected: Sequence[Rejected]) -> pa.Table:
    rows: list[dict[str, Any]] = [
        item.model_dump() for item in sorted(rejected, key=lambda item: item.sample_id)
    ]
    columns = [
        ("sample_id", pa.string()),
        ("label", pa.int32()),
        ("ref", pa.string()),
        ("reason", pa.string()),
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema(columns))


def _note(task: Task) -> str:
    return storage.join(task.root, PROGRESS, task.path.removeprefix("data/").replace("/", "-") + ".json")
