"""What is left of purged data: the sample ids that must not come back, and nothing of the
samples themselves. Ids are kept as hashes under a key; tombstones of before hold them in clear."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from pydantic import Field

from pipeline import storage
from pipeline.data.keyed_ids import IdKey, read_key
from pipeline.data.lake import Lake, lake_uri, read_lake
from pipeline.data.parquet_shards import FLIP_MARK, Stored, read_column
from pipeline.data.partition import Partition
from pipeline.data.sources.base import Item, nameable
from pipeline.data.sources.folder_layout import IMAGE_SUFFIXES
from pipeline.errors import InputError

FOLDER = "tombstones"


class Tombstone(Stored):
    """One purged request. Ids and hashes are sorted; mirrored copies go by their image's id."""

    request: str
    partitions: list[str]  # digests of those that were deleted
    sample_ids: list[str] = Field([])  # in clear: none but in tombstones of before
    key: str | None = None  # the name of the key of `hashes`
    hashes: list[str] = Field([])
    labels: list[int] = Field([])  # classes under which nothing that was sampled is kept
    files: dict[str, list[str]] = Field({})  # by run: what was removed, or made again without the pictures

    @property
    def count(self) -> int:
        """How many samples it remembers."""
        return len(self.sample_ids) + len(self.hashes)

    @property
    def digest(self) -> str:
        return storage.digest_of(self.plain)

    @property
    def plain(self) -> dict[str, Any]:
        """As it is written: with hashes, or, from before, with ids."""
        return self.model_dump(exclude={"key", "hashes"} if self.key is None else {"sample_ids"})


@dataclass(frozen=True, kw_only=True)
class Buried:
    """Every purged sample of a storage root, and the request that purged it."""

    by_id: Mapping[str, str] = field(default_factory=dict)
    by_hash: Mapping[str, str] = field(default_factory=dict)
    key: IdKey | None = None  # of the hashes

    def __bool__(self) -> bool:
        return bool(self.by_id or self.by_hash)

    def request_of(self, sample_id: str) -> str | None:
        """The request that purged `sample_id`, None where none did. A mirrored copy goes by its image."""
        name = sample_id.removesuffix(FLIP_MARK)
        if name in self.by_id or self.key is None:
            return self.by_id.get(name)
        return self.by_hash.get(self.key.hashed(name))

    def of_item(self, item: Item) -> str | None:
        """The request that purged an image of a source, None where none did. An image whose file name is
        there twice has a longer id than it had, or than it will have, alone: all that its file may have been
        called are looked up."""
        path, names = PurePosixPath(item.ref), {item.sample_id: None}
        if path.suffix.lower() in IMAGE_SUFFIXES:  # a file of its own, no row of a table
            names |= dict.fromkeys(map(nameable, (path.stem, str(path.with_suffix("")), str(path))))
        requests = (self.request_of(name) for name in names) if self else iter(())
        return next((request for request in requests if request is not None), None)

    def among(self, sample_ids: Iterable[str]) -> dict[str, str]:
        """Those of `sample_ids` that were purged, each with its request."""
        requests = ((name, self.request_of(name)) for name in sample_ids) if self else ()
        return {name: request for name, request in requests if request is not None}


def bury(
    storage_root: str,
    request: str,
    sample_ids: Iterable[str],
    partitions: Sequence[Partition] = (),
    *,
    labels: Sequence[int] = (),
    files: Mapping[str, Sequence[str]] | None = None,
) -> Tombstone:
    """Leave the tombstone of a finished `request` that was about `sample_ids`, and delete `partitions`. Run
    again after an interruption, it completes.

    The tombstone is written before anything is deleted, so no moment knows neither the data nor its ids.
    """
    earlier = find(storage_root, request) or Tombstone(request=request, partitions=[])
    names = {name.removesuffix(FLIP_MARK) for name in sample_ids} | set(earlier.sample_ids)
    known: set[str] = set(earlier.hashes)
    key: IdKey | None = None
    if names or earlier.key:
        key = read_key(storage_root, create=earlier.key is None)
        key.require(earlier.key or key.name, _uri(storage_root, request))
        known |= {key.hashed(name) for name in names}
    runs = {**earlier.files, **(files or {})}
    tombstone = Tombstone(
        request=request,
        partitions=sorted({part.digest for part in partitions} | set(earlier.partitions)),
        key=key and key.name,
        hashes=sorted(known),
        labels=sorted({*labels, *earlier.labels}),
        files={
            run: sorted({*earlier.files.get(run, []), *(files or {}).get(run, [])}) for run in sorted(runs)
        },
    )
    if tombstone != earlier:
        storage.write_json(_uri(storage_root, request), tombstone.plain)
    for part in partitions:
        storage.remove(part.uri)
    return tombstone


def every(storage_root: str) -> list[Tombstone]:
    """All tombstones under `storage_root`, by request."""
    folder = storage.join(storage_root, FOLDER)
    # below the folder as well: an id with a slash in it was one of folders once
    names = [name for name in storage.walk(folder) if name.endswith(".json")]
    return [storage.read_model(storage.join(folder, name), Tombstone) for name in names]


def buried(storage_root: str) -> Buried:
    """Every purged sample under `storage_root`. Raises `InputError` when the key of its tombstones is
    missing or another one."""
    tombstones = every(storage_root)
    keyed = [tombstone for tombstone in tombstones if tombstone.key]
    key = read_key(storage_root, create=False) if keyed else None
    for tombstone in keyed:
        assert key is not None and tombstone.key is not None
        key.require(tombstone.key, _uri(storage_root, tombstone.request))
    return Buried(
        by_id={name: tombstone.request for tombstone in tombstones for name in tombstone.sample_ids},
        by_hash={value: tombstone.request for tombstone in keyed for value in tombstone.hashes},
        key=key,
    )


def open_lake(storage_root: str, name_or_uri: str) -> Lake:
    """The lake without the rows that were purged under `storage_root`: they are in no partition, no stream,
    no reference and no evaluation."""
    return without_buried(read_lake(lake_uri(storage_root, name_or_uri)), storage_root)


def without_buried(lake: Lake, storage_root: str) -> Lake:
    """`lake` as everything that reads rows is to see it. Ids are looked at only where something was
    purged."""
    purged = buried(storage_root)
    if not purged:
        return lake
    rows = {}
    for shard in lake.manifest.shards:
        names = read_column(lake.uri, shard, "sample_id")
        if again := purged.among(names):
            rows[shard.path] = tuple(index for index, name in enumerate(names) if name in again)
    return replace(lake, buried=rows)


def require_not_buried(storage_root: str, items: Iterable[Item]) -> None:
    """Raise `InputError` when a purged sample is about to be ingested again."""
    purged = buried(storage_root)
    again = {item.sample_id: request for item in items if (request := purged.of_item(item)) is not None}
    if again:
        first = min(again)
        raise InputError(
            f"source: {len(again)} images were purged and must not be ingested again, the first is"
            f" {first!r} (request {again[first]!r}); expected a source without them: remove them"
            " from it, or leave them out with --without-buried"
        )


def find(storage_root: str, request: str) -> Tombstone | None:
    """The tombstone of `request`, None when it was never purged."""
    uri = _uri(storage_root, request)
    if storage.exists(uri):
        return storage.read_model(uri, Tombstone)
    if "/" not in request:
        return None
    return next((one for one in every(storage_root) if one.request == request), None)


def _uri(storage_root: str, request: str) -> str:
    """An id is one name, whatever it holds: those of earlier versions may hold slashes."""
    name = quote(request, safe="") if "/" in request or request.startswith(".") else request
    return storage.join(storage_root, FOLDER, f"{name}.json")
