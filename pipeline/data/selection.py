"""Which rows of a lake a request is about: those to forget, by class or by name, and those to retain."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline import storage
from pipeline.config import Request, UnlearnConfig
from pipeline.data import parquet_shards
from pipeline.data.lake import Lake
from pipeline.data.parquet_shards import FLIP_MARK, Shard
from pipeline.data.sources.base import nameable
from pipeline.data.text_file import read_text
from pipeline.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Rows of one shard of the lake: all of them (`rows` None), or those at the increasing indices `rows`."""

    shard: Shard
    rows: np.ndarray | None = None

    @property
    def count(self) -> int:
        return self.shard.rows if self.rows is None else len(self.rows)


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
