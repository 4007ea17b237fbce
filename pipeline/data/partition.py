"""The partition of one request: which rows are forgotten, which are retained, and the exact order they will
be streamed in."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import storage
from pipeline.config import Request, UnlearnConfig
from pipeline.data import parquet_shards
from pipeline.data.lake import MANIFEST, Lake
from pipeline.data.parquet_shards import FLIP_MARK, File, Kind, Shard, Stored
from pipeline.data.sources.base import nameable
from pipeline.data.stand_ins import StandInFacts, StandIns
from pipeline.data.text_file import read_text
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.data.batch import Batch

SCHEMA_VERSION = 3
LANE_FILE_BYTES = 16 << 20


class LaneFile(File):
    """One lane's rows of one segment's steps, in step order."""

    segment: int
    lane: int


class Manifest(Stored):
    schema_version: int
    digest: str
    key: dict[str, Any]  # what the digest is made of
    kind: Kind
    shape: list[int]
    scale: float
    lanes: int
    batch_size: int
    steps: int
    segment_steps: int
    retain_labels: list[int]
    retain_rows: int  # distinct rows the stream is made of
    retain: list[LaneFile]
    forget: list[Shard]
    exchange: list[Shard]
    # per side: the lake's shards that were opened, and how many row groups were read of each
    opened: dict[str, dict[str, int]]
    stand_ins: StandInFacts | None = None  # among `forget`: sampled rows in the place of purged ones


@dataclass(frozen=True, kw_only=True)
class Partition:
    """`reused`: it was complete before it was asked for."""

    uri: str
    manifest: Manifest
    reused: bool = False

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def forgotten_images(self) -> list[Shard]:
        """Files of real rows to forget: without those that only stand in for them."""
        sampled = self.manifest.stand_ins.samples if self.manifest.stand_ins else {}
        return [file for file in self.manifest.forget if file.label not in sampled]

    @property
    def lane_batch(self) -> int:
        """Rows one lane gives to one step."""
        return self.manifest.batch_size // self.manifest.lanes

    def forget(self) -> "Batch":
        """Every row to forget, by class and sample id."""
        return self._read(self.manifest.forget)

    def exchange(self) -> "Batch":
        """Every training row of the exchange classes, by class and sample id; empty when the request has
        none."""
        return self._read(self.manifest.exchange)

    def _read(self, files: Sequence[Shard]) -> "Batch":
        # torch, which tasks that only write files do without
        from pipeline.data.decode import read_batch

        return read_batch(self.uri, files, self.manifest.kind, self.manifest.shape, self.manifest.scale)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Rows of one shard of the lake: all of them (`rows` None), or those at the increasing indices `rows`."""

    shard: Shard
    rows: np.ndarray | None = None

    @property
    def count(self) -> int:
        return self.shard.rows if self.rows is None else len(self.rows)


def partition_key(
    config: UnlearnConfig,
    lake: Lake,
    sample_ids: Sequence[str] | None,
    neighbours: Sequence[int] | None,
    stand_ins: StandIns | None = None,
) -> dict[str, Any]:
    """All that decides what a partition holds; two requests that ask the same share it, whatever they are
    called. Rows that were purged since make it another one."""
    request = config.request
    whole = sorted(set(request.classes))
    return {
        "schema_version": SCHEMA_VERSION,
        # with named samples alone, where they are; the digests of earlier partitions stay
        "classes": whole if sample_ids is None else sorted(set(request.sample_classes)),
        **({"whole_classes": whole} if whole and sample_ids is not None else {}),
        **(
            {"forgotten_earlier": sorted(set(request.forgotten_earlier))} if request.forgotten_earlier else {}
        ),
        "sample_ids": None if sample_ids is None else storage.digest_of(sorted(set(sample_ids))),
        "exchange": {str(label): list(exchange) for label, exchange in request.exchange_classes.items()},
        "retain": request.retain,
        "neighbours": sorted(set(neighbours or [])) if request.retain == "neighbours" else None,
        "lake": lake.digest,
        "seed": config.seed,
        "lanes": config.partition.lanes,
        "batch_size": config.optim.batch_size,
        "steps": config.optim.max_steps + config.optim.moment_warmup_steps,
        "segment_steps": segment_steps(config, lake),
        **({"buried": buried} if (buried := lake.buried_digest) else {}),
        **({"stand_ins": dict(stand_ins.key)} if stand_ins else {}),
    }


def segment_steps(config: UnlearnConfig, lake: Lake) -> int:
    """Steps of one lane file."""
    if config.partition.segment_steps is not None:
        return config.partition.segment_steps
    step_bytes = (
        config.optim.batch_size
        // config.partition.lanes
        * parquet_shards.row_bytes(lake.manifest.kind, lake.manifest.shape)
    )
    return max(1, LANE_FILE_BYTES // step_bytes)


def read_sample_ids(request: Request) -> list[str] | None:
    """The ids that the request's file names, one a line; None when it names no file."""
    return None if request.sample_ids is None else read_ids(request.sample_ids, "request.sample_ids")


def read_ids(where: str, key: str) -> list[str]:
    """The lines of the text file `where`, which the configuration names as `key`, as ids are written in a
    lake."""
    uri = storage.absolute(where)
    if not storage.exists(uri):
        raise InputError(
            f"{key}: got {where!r}, which is missing; expected a text file with one sample id a line"
        )
    ids = [nameable(line.strip()) for line in read_text(uri).splitlines() if line.strip()]
    if not ids:
        raise InputError(f"{key}: {where!r} is empty, expected one sample id a line")
    return ids


def forget_selection(request: Request, lake: Lake, sample_ids: Sequence[str] | None) -> list[Selection]:
    """The training rows to forget, by class. Whole classes are a matter of naming files; only named ids make
    it look inside them."""
    if sample_ids is None and not request.classes:
        raise InputError(
            "request: got neither classes nor sample_ids, expected at least one: --set 'request.classes=[1]'"
        )
    read = set(request.classes) - set(request.stood_in)
    whole = without(lake, lake.shards(sorted(read)), [])
    if bare := read - {item.shard.label for item in whole}:
        rows = sum(len(lake.buried.get(shard.path, ())) for shard in lake.shards([min(bare)]))
        raise InputError(
            f"request.classes: class {min(bare)} has no training images in lake {lake.manifest.name!r}"
            f"{f' ({rows} were purged)' if rows else ''}; expected a class that has some"
        )
    named = [] if sample_ids is None else _named_selection(request, lake, sample_ids)
    return sorted([*whole, *named], key=lambda item: item.shard.label)


def _named_selection(request: Request, lake: Lake, sample_ids: Sequence[str]) -> list[Selection]:
    """The rows of `sample_ids`. Raises `InputError` for ids that are not there, and for those of a class that
    is forgotten whole: whoever names samples may have meant no more than them."""
    among = lake.shards(sorted(set(request.sample_classes)) or None)
    rows_by_shard = find_ids(lake, among, sample_ids)
    for shard in among:
        rows, _ = rows_by_shard[shard.path]
        if len(rows) and shard.label in request.forgotten_classes:
            key = "classes" if shard.label in request.classes else "forgotten_earlier"
            raise InputError(
                f"request.sample_ids: {len(rows)} named rows are of class {shard.label}, which request.{key}"
                f" forgets whole; name class {shard.label} in request.sample_classes to forget only these"
                " samples, or drop the ids"
            )
    purged = sorted(
        name
        for path, (rows, names) in rows_by_shard.items()
        for row, name in zip(rows, names, strict=True)
        if row in lake.buried.get(path, ())
    )
    if purged:
        raise InputError(
            f"request.sample_ids: {len(set(purged))} of {len(set(sample_ids))} ids were purged, the first is"
            f" {purged[0]!r}; nothing reads their rows any more: drop them from the list"
        )
    if missing := set(sample_ids) - {name for _, names in rows_by_shard.values() for name in names}:
        where = f"classes {sorted(set(request.sample_classes))} of" if request.sample_classes else "the"
        raise InputError(
            f"request.sample_ids: {len(missing)} of {len(set(sample_ids))} ids are no training rows of"
            f" {where} lake {lake.manifest.name!r}, the first is {min(missing)!r}; expected ids of the lake's"
            " sample_id column"
        )
    return [Selection(shard=shard, rows=rows) for shard in among if len(rows := rows_by_shard[shard.path][0])]


def selections(
    config: UnlearnConfig, lake: Lake, sample_ids: Sequence[str] | None, neighbours: Sequence[int] | None
) -> tuple[list[Selection], list[Selection], list[int]]:
    """The rows to forget, the rows to retain and the retained labels. Raises `InputError` for a request the
    lake cannot serve."""
    request = config.request
    forget = forget_selection(request, lake, sample_ids)
    if config.method.depth == "weights":
        require_siblings(request, lake, forget)
    labels = retain_labels(request, lake, neighbours)
    retain = without(lake, lake.shards(labels), forget)
    rows, batch_size = sum(item.count for item in retain), config.optim.batch_size
    if rows < batch_size:
        raise InputError(
            f"optim.batch_size: got {batch_size}, but retain policy {request.retain!r} leaves {rows} rows; "
            "expected a batch no larger than that, or a wider policy"
        )
    return forget, retain, labels


def require_siblings(request: Request, lake: Lake, forget: Sequence[Selection]) -> None:
    """Raise `InputError` where no row of a class is left beside those that are named: depth weights shows
    named samples as others of their class."""
    for label in sorted({item.shard.label for item in forget} - set(request.classes)):
        if not without(lake, lake.shards([label]), forget):
            raise InputError(
                f"request.sample_ids: got every row of class {label} with method.depth weights, which shows"
                f" named samples as others of their class; expected some that stay, or"
                f" request.classes=[{label}], which forgets the class"
            )


def find_ids(
    lake: Lake, among: Sequence[Shard], sample_ids: Sequence[str]
) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Per shard path: the row indices of `sample_ids`, mirrored copies included, and those ids. Only the
    sample_id column is read."""
    return _find_ids(lake.uri, tuple(among), frozenset(sample_ids))


@lru_cache(maxsize=1)
def _find_ids(
    lake_uri: str, among: tuple[Shard, ...], ids: frozenset[str]
) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Kept, because a job asks twice: when it checks the request, and when it makes the partition. Shards
    carry their digest."""
    rows_by_shard = {}
    for shard in among:
        names = [
            name.removesuffix(FLIP_MARK) for name in parquet_shards.read_column(lake_uri, shard, "sample_id")
        ]
        rows = [i for i, name in enumerate(names) if name in ids]
        rows_by_shard[shard.path] = (np.array(rows, np.int64), [names[i] for i in rows])
    return rows_by_shard


def without(lake: Lake, selected: Sequence[Shard], forgotten: Sequence[Selection]) -> list[Selection]:
    """All rows of `selected` that are neither forgotten nor purged."""
    forget = {item.shard.path: item for item in forgotten}
    remaining = []
    for shard in selected:
        match = forget.get(shard.path)
        forgotten_rows: list[int] = []
        if match is not None:
            if match.rows is None:
                continue
            forgotten_rows = match.rows.tolist()
        gone = set(lake.buried.get(shard.path, ())).union(forgotten_rows)
        rows = np.setdiff1d(np.arange(shard.rows), sorted(gone)) if gone else None
        remaining.append(Selection(shard=shard, rows=rows))
    return [item for item in remaining if item.count]


def exchange_labels(request: Request) -> list[int]:
    return sorted({label for exchange in request.exchange_classes.values() for label in exchange})


def retain_labels(request: Request, lake: Lake, neighbours: Sequence[int] | None) -> list[int]:
    """The classes that the retain policy samples from: none that is or was forgotten whole."""
    forgotten = set(request.forgotten_classes)
    if request.retain == "all":
        labels = {item.label for item in lake.manifest.classes} - forgotten
    elif request.retain == "exchange":
        labels = set(exchange_labels(request))
    else:
        labels = set(neighbours or [])
    if not labels:
        raise InputError(
            f"request.retain: got {request.retain!r}, which leaves no class to retain; expected "
            + {
                "exchange": "request.exchange to name one",
                "neighbours": "neighbours to be known",
                "all": "fewer classes forgotten",
            }[request.retain]
        )
    if labels & forgotten:
        raise InputError(
            f"request: class {min(labels & forgotten)} is both forgotten and retained, expected another"
            " exchange class"
        )
    return sorted(labels)


def stream_order(labels: np.ndarray, total: int, seed: int) -> np.ndarray:
    """(total,) indices into the candidate rows whose classes are `labels` (grouped by class): position p
    holds row order[p].

    The rows go by in passes of len(labels). Each pass is its own permutation, in which every class is spread
    evenly: the i-th of its m rows falls at a random place in the i-th of m equal stretches of the pass, so a
    cut-off pass is still balanced.
    """
    from pipeline.seeding import seed_of

    n = len(labels)
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    ends = np.r_[starts[1:], n]
    passes = []
    for number in range(-(-total // n)):
        random = np.random.default_rng(seed_of(seed, "retain", number))
        place = np.empty(n)
        for start, end in zip(starts, ends):
            m = end - start
            place[start:end] = (random.permutation(m) + random.random(m)) / m
        passes.append(np.argsort(place, kind="stable"))
    return np.concatenate(passes)[:total]


def find_partition(uri: str) -> Partition | None:
    """The complete partition at `uri`, None when there is none."""
    path = storage.join(uri, MANIFEST)
    if not storage.exists(path):
        return None
    return Partition(uri=uri, manifest=storage.read_model(path, Manifest), reused=True)
