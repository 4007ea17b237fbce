"""Raw images -> lake, on Ray Data: one row of the input dataset is one shard to make, one task makes it."""

import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.config import PrepareConfig
from pipeline.data import shards
from pipeline.data.lake import MANIFEST, SCHEMA_VERSION, Class, Encoding, Lake, Manifest, find_lake, lake_uri
from pipeline.data.shard_tasks import Made, Rejected, Task, finished, make_shard, plan, rejected_table, remove_leftovers
from pipeline.data.shards import Shard
from pipeline.data.sources import open_source
from pipeline.data.sources.base import Item, RawImages, Split, require_unique
from pipeline.errors import InputError

REJECTED = "rejected.parquet"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """`continued`: shards that an earlier, unfinished run had made."""

    lake: Lake
    reused: bool
    continued: int
    seconds: float


def prepare(config: PrepareConfig, run: Callable[[Sequence[Task]], Iterable[Made]] | None = None) -> Prepared:
    """Make the lake that `config` describes. A complete one made with the same settings is used as it is, without starting Ray;
    an unfinished one is continued.

    `run` makes the shards, on Ray Data when None; `lambda tasks: map(make_shard, tasks)` makes them in this process.
    """
    start = time.monotonic()
    uri = lake_uri(config.storage, config.lake)
    lake = find_lake(uri)
    if lake is not None:
        require_same_settings(lake, settings_of(config))
        return Prepared(lake=lake, reused=True, continued=0, seconds=time.monotonic() - start)
    source, items = listed(config)
    storage.require_writable(uri)
    noted = list(finished(plan(items, source, uri, config), uri))
    made = [done for _, done in noted if done is not None]
    continued = len(made)
    made += (run or run_on_ray)([task for task, done in noted if done is None])
    rejected = [item for done in made for item in done.rejected]
    require_all(items, made, rejected, config)
    manifest = manifest_of(config, source, [done.shard for done in made if done.shard is not None], len(rejected))
    if rejected:
        table = rejected_table(rejected)
        storage.write_bytes(storage.join(uri, REJECTED), shards.encode([table], table.schema, shards.ROW_GROUP_BYTES))
    storage.write_json(storage.join(uri, MANIFEST), manifest.model_dump(mode="json"))
    remove_leftovers(uri, manifest.shards)
    return Prepared(lake=Lake(uri=uri, manifest=manifest), reused=False, continued=continued, seconds=time.monotonic() - start)


def describe(config: PrepareConfig) -> str:
    """What `prepare` would do, in one line; reads the source's listing and writes nothing."""
    uri = lake_uri(config.storage, config.lake)
    lake = find_lake(uri)
    if lake is not None:
        require_same_settings(lake, settings_of(config))
        return f"would use the complete lake {uri}"
    source, items = listed(config)
    return f"would make {uri} of {len(items)} images of {len(source.classes)} classes in {len(plan(items, source, uri, config))} shards"


def listed(config: PrepareConfig) -> tuple[RawImages, list[Item]]:
    """The source and its images, every sample id once."""
    source = open_source(config.source)
    items = source.items()
    require_unique(items)
    return source, items


def settings_of(config: PrepareConfig) -> dict[str, dict[str, Any]]:
    """Every setting that changes what the lake holds, by the section of the manifest that records it."""
    return {
        "source": config.source.model_dump(mode="json"),
        "preprocessing": config.prepare.model_dump(mode="json", exclude={"max_rejected"}),
    }


def require_same_settings(lake: Lake, settings: dict[str, dict[str, Any]]) -> None:
    for section, wanted in settings.items():
        found = getattr(lake.manifest, section)
        for key in sorted(wanted.keys() | found.keys()):
            if wanted.get(key) != found.get(key):
                raise InputError(
                    f"the lake {lake.uri} was made with {section}.{key} = {found.get(key)!r}, got {wanted.get(key)!r}: "
                    "pass another name with --set lake=<name>, or remove that folder first"
                )


def require_all(items: Sequence[Item], made: Sequence[Made], rejected: Sequence[Rejected], config: PrepareConfig) -> None:
    """Every listed image is in a shard or named as rejected, and no more are rejected than the configuration puts up with."""
    shards.require_rows("the shards just made", sum(done.items for done in made), len(items))
    limit = config.prepare.max_rejected
    if rejected and (len(rejected) == len(items) or (limit is not None and len(rejected) > limit)):
        worst = min(rejected, key=lambda item: item.sample_id)
        raise InputError(
            f"source: {len(rejected)} of {len(items)} images cannot be used, expected at most {limit if limit is not None else 'some'}; "
            f"the first is {worst.ref} ({worst.reason}): mend or remove them, or raise prepare.max_rejected"
        )


def manifest_of(config: PrepareConfig, source: RawImages, made: Sequence[Shard], rejected: int) -> Manifest:
    def rows(label: int, split: Split) -> int:
        return sum(shard.rows for shard in made if shard.label == label and shard.split == split)

    settings = settings_of(config)
    return Manifest(
        name=config.lake,
        schema_version=SCHEMA_VERSION,
        kind="image",
        shape=list(config.prepare.shape),
        classes=[
            Class(label=label, name=name, train_rows=rows(label, "train"), heldout_rows=rows(label, "heldout"))
            for label, name in enumerate(source.classes)
        ],
        shards=sorted(made, key=lambda shard: shard.path),
        rejected=rejected,
        source=settings["source"],
        preprocessing=settings["preprocessing"],
        encoder=Encoding(),
    )


def run_on_ray(tasks: Sequence[Task]) -> Iterator[Made]:
    """Make the shards on Ray Data; they come as they are finished, in any order."""
    if not tasks:
        return
    import ray
    from tqdm import tqdm

    from pipeline import cluster_ray

    cluster_ray.connect()
    rows = [{"task": pickle.dumps(task)} for task in tasks]
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_make_row)
    with tqdm(total=sum(len(task.items) for task in tasks), unit="image", desc="preparing", delay=2, mininterval=1) as progress:
        for row in results.iter_rows():
            made = Made.model_validate_json(row["made"])
            progress.update(made.items)
            yield made


def _make_row(row: dict[str, Any]) -> dict[str, Any]:
    return {"made": make_shard(pickle.loads(row["task"])).model_dump_json()}
