"""Raw images -> lake, on Ray Data: one row of the input dataset is one shard to make, one task makes it."""

import pickle
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.config import PrepareConfig
from pipeline.data import shards
from pipeline.data.lake import MANIFEST, SCHEMA_VERSION, Class, Encoding, Lake, Manifest, find_lake, lake_uri
from pipeline.data.preprocess import to_pixels
from pipeline.data.shards import Shard
from pipeline.data.sources import open_source
from pipeline.data.sources.base import Item, RawImages, Split, require_unique
from pipeline.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Prepared:
    lake: Lake
    reused: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Task:
    """One shard to make: its place, what goes into it and how."""

    root: str
    path: str
    label: int
    split: Split
    items: tuple[Item, ...]
    source: RawImages
    shape: tuple[int, int, int]


def prepare(config: PrepareConfig, run: Callable[[Sequence[Task]], Iterable[Shard]] | None = None) -> Prepared:
    """Make the lake that `config` describes. A complete one made with the same settings is used as it is, without starting Ray.

    `run` makes the shards, on Ray Data when None; `lambda tasks: map(make_shard, tasks)` makes them in this process.
    """
    start = time.monotonic()
    uri = lake_uri(config.storage, config.lake)
    settings = settings_of(config)
    lake = find_lake(uri)
    if lake is not None:
        require_same_settings(lake, settings)
        return Prepared(lake=lake, reused=True, seconds=time.monotonic() - start)
    source = open_source(config.source)
    items = source.items()
    require_unique(items)
    storage.require_writable(uri)
    made = [shard for shard in (run or run_on_ray)(plan(items, source, uri, config)) if shard.rows]
    require_all(items, made)
    manifest = Manifest(
        name=config.lake,
        schema_version=SCHEMA_VERSION,
        kind="image",
        shape=list(config.prepare.shape),
        classes=[
            Class(label=label, name=name, train_rows=_rows(made, label, "train"), heldout_rows=_rows(made, label, "heldout"))
            for label, name in enumerate(source.classes)
        ],
        shards=sorted(made, key=lambda shard: shard.path),
        encoder=Encoding(),
        source=settings["source"],
        preprocessing=settings["preprocessing"],
    )
    storage.write_json(storage.join(uri, MANIFEST), manifest.model_dump(mode="json"))
    return Prepared(lake=Lake(uri=uri, manifest=manifest), reused=False, seconds=time.monotonic() - start)


def describe(config: PrepareConfig) -> str:
    """What `prepare` would do, in one line; reads the source's listing and writes nothing."""
    uri = lake_uri(config.storage, config.lake)
    lake = find_lake(uri)
    if lake is not None:
        require_same_settings(lake, settings_of(config))
        return f"would use the complete lake {uri}"
    source = open_source(config.source)
    items = source.items()
    require_unique(items)
    return f"would make {uri} of {len(items)} images of {len(source.classes)} classes in {len(plan(items, source, uri, config))} shards"


def settings_of(config: PrepareConfig) -> dict[str, dict[str, Any]]:
    """Every setting that changes what the shards hold, by the section of the manifest that records it."""
    return {"source": config.source.model_dump(mode="json"), "preprocessing": config.prepare.model_dump(mode="json")}


def require_same_settings(lake: Lake, settings: dict[str, Any]) -> None:
    for section, wanted in settings.items():
        found = getattr(lake.manifest, section)
        for key in sorted(wanted.keys() | found.keys()):
            if wanted.get(key) != found.get(key):
                raise InputError(
                    f"the lake {lake.uri} was made with {section}.{key} = {found.get(key)!r}, got {wanted.get(key)!r}: "
                    "pass another name with --set lake=<name>, or remove that folder first"
                )


def plan(items: Sequence[Item], source: RawImages, uri: str, config: PrepareConfig) -> list[Task]:
    """The shards to make: per class and split, by sample id, `prepare.shard_rows` rows each."""
    groups: dict[tuple[int, Split], list[Item]] = defaultdict(list)
    for item in items:
        groups[item.label, item.split].append(item)
    tasks = []
    for (label, split), members in sorted(groups.items()):
        members.sort(key=lambda item: item.sample_id)
        for part, first in enumerate(range(0, len(members), config.prepare.shard_rows)):
            name = f"{'part' if split == 'train' else split}-{part:05d}.parquet"
            tasks.append(
                Task(
                    root=uri,
                    path=f"data/label={label:05d}/{name}",
                    label=label,
                    split=split,
                    items=tuple(members[first : first + config.prepare.shard_rows]),
                    source=source,
                    shape=config.prepare.shape,
                )
            )
    return tasks


def make_shard(task: Task) -> Shard:
    """Read, transform and write one shard."""
    pixels = np.stack([to_pixels(raw, task.shape) for raw in task.source.read(task.items)])
    table = pa.table(
        {
            "sample_id": [item.sample_id for item in task.items],
            "label": pa.array([task.label] * len(task.items), pa.int32()),
            "image": shards.tensor_array(pixels, "image"),
        }
    )
    return shards.write(task.root, task.path, [table], "image", task.shape, label=task.label, split=task.split)


def run_on_ray(tasks: Sequence[Task]) -> Iterator[Shard]:
    """The shards as they are finished, in any order."""
    import ray
    from tqdm import tqdm

    from pipeline import cluster_ray

    cluster_ray.connect()
    rows = [{"task": pickle.dumps(task)} for task in tasks]
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_make_row)
    with tqdm(total=sum(len(task.items) for task in tasks), unit="image", desc="preparing", delay=2, mininterval=1) as progress:
        for row in made.iter_rows():
            shard = Shard.model_validate_json(row["shard"])
            progress.update(shard.rows)
            yield shard


def _make_row(row: dict[str, Any]) -> dict[str, Any]:
    return {"shard": make_shard(pickle.loads(row["task"])).model_dump_json()}


def require_all(items: Sequence[Item], made: list[Shard]) -> None:
    shards.require_rows("the shards just made", sum(shard.rows for shard in made), len(items))


def _rows(made: list[Shard], label: int, split: Split) -> int:
    return sum(shard.rows for shard in made if shard.label == label and shard.split == split)
