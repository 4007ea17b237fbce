"""Raw images -> lake, on Ray: one task makes a shard, or several small ones."""

import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from pipeline import lease, storage
from pipeline.config import Encoder as EncoderConfig
from pipeline.config import PrepareConfig
from pipeline.data import parquet_shards
from pipeline.data.ingest import (
    PROGRESS,
    Made,
    Pixels,
    Task,
    finished,
    make_shard,
    plan,
    read_pixels,
    rejected_table,
    remove_leftovers,
    remove_rejecting,
    write_shard,
)
from pipeline.data.lake import MANIFEST, Lake, Manifest, find_lake, lake_uri
from pipeline.data.lake_manifest import manifest_of, passed_over, require_all, require_same_settings
from pipeline.data.lake_rewrite import affected, require_nothing_buried, rewrite
from pipeline.data.sources import completed, open_source, regroup
from pipeline.data.sources.base import Item, RawImages, require_training_images, require_unique
from pipeline.data.tombstones import buried, require_not_buried, without_buried
from pipeline.data.vae_encoder import Encoder, Plan, plan_encoding
from pipeline.errors import InputError
from pipeline.runtime.progress import Progress

REJECTED, REGROUPED = "rejected.parquet", "regrouped"
LEASE = "lease"
LEASE_S = 60.0  # renewed while it works; how long a machine that went away keeps others out
GROUP_BYTES = 8 << 20  # pixels of the small shards that one Ray task makes
IN_FLIGHT = 1024  # Ray looks at each of them whenever one ends
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """`continued`: shards that an earlier, unfinished run had made. `rewritten`: the classes of a complete
    lake that were written again without what was purged."""

    lake: Lake
    reused: bool
    continued: int
    seconds: float
    rewritten: tuple[int, ...] = ()


def prepare(config: PrepareConfig, run: Callable[[Sequence[Task]], Iterable[Made]] | None = None) -> Prepared:
    """Make the lake that `config` describes. A complete one made with the same settings is used as it is,
    without starting Ray; an unfinished one is continued.

    `run` makes the shards, on Ray when None; `lambda tasks: map(make_shard, tasks)` makes them in this
    process.
    """
    start = time.monotonic()
    config = config.model_copy(update={"source": completed(config.source)})
    uri = lake_uri(config.storage, config.lake)
    lake = find_lake(uri)
    if lake is not None:
        rewritten: tuple[int, ...] = ()
        lake = _complete(lake, config)
        if lake.buried:
            storage.require_writable(uri)
            rewritten = tuple(sorted(affected(lake)))
            lake = rewrite(lake)
        elif config.without_buried:
            remove_leftovers(uri, lake.manifest.shards)  # of a rewriting that was killed at its end
        seconds = time.monotonic() - start
        return Prepared(lake=lake, reused=True, continued=0, seconds=seconds, rewritten=rewritten)
    rows_as = plan_encoding(config)
    source, items = listed(config)
    storage.require_writable(uri)
    with only_preparation(uri):
        if find_lake(uri) is None:
            manifest, continued = _make_lake(config, uri, source, items, rows_as, run)
            lake = Lake(uri=uri, manifest=manifest)
    if lake is None:  # another preparation finished it while this one listed the source
        storage.remove(storage.join(uri, PROGRESS))
        return prepare(config, run)
    remove_leftovers(uri, lake.manifest.shards)
    seconds = time.monotonic() - start
    return Prepared(lake=lake, reused=False, continued=continued, seconds=seconds)


@contextmanager
def only_preparation(uri: str) -> Iterator[None]:
    """Hold the lake at `uri` for this process. Raises `InputError` while another one prepares it, be it with
    the same settings or others. What is refused before a shard was made leaves nothing behind."""
    try:
        with (
            storage.without_new_empty_folders(uri),
            lease.held(storage.join(uri, PROGRESS, LEASE), lasts_s=LEASE_S),
        ):
            try:
                yield
            except InputError:
                if all(name.startswith(f"{PROGRESS}/{LEASE}/") for name in storage.walk(uri)):
                    storage.remove(uri)
                raise
    except lease.LeaseHeldError as error:
        raise InputError(
            f"the lake {uri} is being prepared by another process ({error}); wait for it, or pass another"
            " name with --set lake=<name>"
        ) from error


def _make_lake(
    config: PrepareConfig,
    uri: str,
    source: RawImages,
    items: list[Item],
    rows_as: Plan,
    run: Callable[[Sequence[Task]], Iterable[Made]] | None,
) -> tuple[Manifest, int]:
    """Make what is not made yet, the manifest last. Returns it, and how many shards there were already."""
    tasks = plan(items, source, uri, config, rows_as)
    if source.scattered and regroup.reread_bytes([task.items for task in tasks]) > regroup.REREAD_BYTES:
        copies, items = regroup.plan_regrouping(items, storage.join(uri, PROGRESS, REGROUPED))
        copied = list(map(regroup.regroup, copies) if run else _regroup_on_ray(copies))
        parquet_shards.require_rows("the regrouped source", sum(copied), len(items))
        tasks = plan(items, source, uri, config, rows_as)
    notes = list(finished(tasks, uri))
    outcomes = [outcome for _, outcome in notes if outcome is not None]
    continued = len(outcomes)
    outcomes += (run or partial(run_on_ray, config.encoder))(
        [task for task, outcome in notes if outcome is None]
    )
    rejected = [item for outcome in outcomes for item in outcome.rejected]
    try:
        require_all(items, outcomes, rejected, config)
    except InputError:
        remove_rejecting(tasks, outcomes)
        storage.remove(storage.join(uri, PROGRESS, REGROUPED))
        raise
    manifest = manifest_of(
        config,
        source,
        rows_as,
        [outcome.shard for outcome in outcomes if outcome.shard is not None],
        len(rejected),
    )
    if rejected:
        table = rejected_table(rejected)
        storage.write_bytes(
            storage.join(uri, REJECTED),
            parquet_shards.encode([table], table.schema, parquet_shards.ROW_GROUP_BYTES),
        )
    storage.write_json(storage.join(uri, MANIFEST), manifest.model_dump(mode="json"))
    return manifest, continued


def describe(config: PrepareConfig) -> str:
    """What `prepare` would do, in one line; reads the source's listing and writes nothing."""
    config = config.model_copy(update={"source": completed(config.source)})
    uri = lake_uri(config.storage, config.lake)
    lake = find_lake(uri)
    if lake is not None:
        lake = _complete(lake, config)
        if lake.buried:
            labels = ", ".join(map(str, sorted(affected(lake))))
            rows = sum(map(len, lake.buried.values()))
            return f"would write classes {labels} of {uri} again without {rows} purged rows"
        return f"would use the complete lake {uri}"
    source, items = listed(config)
    tasks = plan(items, source, uri, config, plan_encoding(config))
    return (
        f"would make {uri} of {len(items)} images of {len(source.classes)} classes in {len(tasks)} shards"
        + "".join(f"\n  passed over: {line}" for line in passed_over(source))
    )


def _complete(lake: Lake, config: PrepareConfig) -> Lake:
    """A complete lake made with the settings of `config`, with the purged rows that it holds. Raises
    `InputError` where it holds some and nobody said that they are to go."""
    require_same_settings(lake, config)
    lake = without_buried(lake, config.storage)
    if not config.without_buried:
        require_nothing_buried(lake, buried(config.storage))
    return lake


def listed(config: PrepareConfig) -> tuple[RawImages, list[Item]]:
    """The source and its images: every sample id once, some to train on, and none that was purged."""
    source = open_source(config.source)
    items = source.items()
    require_unique(items)
    if config.without_buried:
        purged = buried(config.storage)
        items = [item for item in items if purged.of_item(item) is None]
    require_not_buried(config.storage, items)
    require_training_images(items)
    return source, items


def run_on_ray(encoder: EncoderConfig, tasks: Sequence[Task]) -> Iterator[Made]:
    """Make the shards on Ray; they come as they are finished, in any order."""
    if not tasks:
        return
    with Progress("preparing images", sum(len(task.items) for task in tasks)) as progress:
        for outcome in _pixels_on_ray(tasks) if tasks[0].rows.weights is None else _encoded(encoder, tasks):
            progress.add(outcome.items)
            yield outcome


def _pixels_on_ray(tasks: Sequence[Task]) -> Iterator[Made]:
    """Plain tasks, whose results are the shards' descriptions: no pixel passes through Ray. Ray Data would
    ration memory that none of them takes, and look ten times a second whether one has ended."""
    pixels = [len(task.items) * parquet_shards.row_bytes("image", task.shape) for task in tasks]
    for outcomes in _as_finished(_make, parquet_shards.chunked(tasks, pixels, GROUP_BYTES)):
        yield from outcomes


def _encoded(encoder: EncoderConfig, tasks: Sequence[Task]) -> Iterator[Made]:
    """On Ray Data in two stages: tasks decode images while a pool of actors, each with the autoencoder,
    encodes and writes."""
    import ray

    from pipeline.runtime import cluster_ray

    cluster_ray.connect()
    waiting = ray.data.from_items(
        [{"task": pickle.dumps(task)} for task in tasks], override_num_blocks=len(tasks)
    )
    # Unequal resources keep Ray Data from fusing the two stages into one; small ones leave room for both on
    # any machine.
    pool: dict[str, Any] = (
        {"num_gpus": encoder.gpus_per_worker} if encoder.gpus_per_worker else {"num_cpus": 0.25}
    )
    actor: Any = _EncodingActor
    results = waiting.map(_decode, num_cpus=0.5).map(actor, concurrency=encoder.workers, **pool)
    for row in results.iter_rows():
        if row["error"]:
            raise pickle.loads(row["error"])
        yield Made.model_validate_json(row["made"])


def _regroup_on_ray(copies: Sequence[regroup.Regrouping]) -> Iterator[int]:
    with Progress("regrouping files", len(copies)) as progress:
        for rows in _as_finished(regroup.regroup, copies):
            progress.add(1)
            yield rows


def _as_finished(function: Callable[[Any], ResultT], arguments: Sequence[Any]) -> Iterator[ResultT]:
    """`function` of each of `arguments` in Ray tasks of a CPU each; the results in the order in which they
    are there. No more than `IN_FLIGHT` wait at Ray at once."""
    import ray

    from pipeline.runtime import cluster_ray

    cluster_ray.connect()
    remote: Any = ray.remote(num_cpus=1)(function)
    waiting = iter(arguments)
    pending = [remote.remote(argument) for argument in islice(waiting, IN_FLIGHT)]
    try:
        while pending:
            ready, pending = ray.wait(pending)
            pending += [remote.remote(argument) for argument in islice(waiting, len(ready))]
            with cluster_ray.plain_errors():
                yield from ray.get(ready)
    finally:  # nothing goes on to be written once somebody gave up
        for reference in pending:
            ray.cancel(reference)


def _make(tasks: Sequence[Task]) -> list[Made]:
    return [make_shard(task) for task in tasks]


def _reported(make: Callable[[], Made]) -> dict[str, Any]:
    """A task's result as a row. Ray Data drops the cause of what a function raises, so errors to be told in
    one line go as data."""
    try:
        return {"made": make().model_dump_json(), "error": b""}
    except (InputError, storage.StorageError) as error:
        return {"made": "", "error": pickle.dumps(type(error)(str(error)))}


def _decode(row: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"task": row["task"], "pixels": pickle.dumps(read_pixels(pickle.loads(row["task"])))}
    except (InputError, storage.StorageError) as error:
        return {"task": row["task"], "pixels": pickle.dumps(type(error)(str(error)))}


class _EncodingActor:
    """Holds the autoencoder; loaded with the first shard, whose task says which."""

    def __init__(self) -> None:
        self.encoder: Encoder | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return _reported(lambda: self._encode(pickle.loads(row["task"]), pickle.loads(row["pixels"])))

    def _encode(self, task: Task, pixels: Pixels | Exception) -> Made:
        if isinstance(pixels, Exception):
            raise pixels
        if self.encoder is None:
            self.encoder = Encoder(task.rows)
        return write_shard(
            task,
            [(pixels.sample_ids, pixels.images)] if pixels.sample_ids else [],
            pixels.rejected,
            self.encoder.columns,
        )
