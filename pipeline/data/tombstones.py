"""What is left of purged data: the sample ids that must not come back, and nothing of the
samples themselves."""

from collections.abc import Iterable, Mapping, Sequence

from pydantic import Field

from pipeline import storage
from pipeline.data.parquet_shards import FLIP_MARK, Stored, read_column
from pipeline.data.partition import Partition
from pipeline.data.sources.base import Item
from pipeline.errors import InputError

FOLDER = "tombstones"


class Tombstone(Stored):
    """One purged request. Ids are sorted; mirrored copies go by their image's id."""

    request: str
    partitions: list[str]  # digests of those that were deleted
    sample_ids: list[str]
    labels: list[int] = Field([])  # classes under which nothing that was sampled is kept
    files: dict[str, list[str]] = Field({})  # by run: what was removed, or made again without the pictures

    @property
    def digest(self) -> str:
        return storage.digest_of(self.model_dump())


def bury(
    storage_root: str,
    request: str,
    partitions: Sequence[Partition],
    *,
    labels: Sequence[int] = (),
    files: Mapping[str, Sequence[str]] | None = None,
) -> Tombstone:
    """Delete the partitions of a finished `request` and leave its tombstone. Run again after an interruption,
    it completes.

    The tombstone is written before anything is deleted, so no moment knows neither the data nor its ids.
    """
    earlier = find(storage_root, request) or Tombstone(request=request, partitions=[], sample_ids=[])
    ids = {
        name.removesuffix(FLIP_MARK)
        for part in partitions
        for file in part.manifest.forget
        for name in read_column(part.uri, file, "sample_id")
    }
    runs = {**earlier.files, **(files or {})}
    tombstone = Tombstone(
        request=request,
        partitions=sorted({part.digest for part in partitions} | set(earlier.partitions)),
        sample_ids=sorted(ids | set(earlier.sample_ids)),
        labels=sorted({*labels, *earlier.labels}),
        files={
            run: sorted({*earlier.files.get(run, []), *(files or {}).get(run, [])}) for run in sorted(runs)
        },
    )
    if tombstone != earlier:
        storage.write_json(_uri(storage_root, request), tombstone.model_dump())
    for part in partitions:
        storage.remove(part.uri)
    return tombstone


def buried(storage_root: str) -> dict[str, str]:
    """Every purged sample id under `storage_root`, and the request that purged it."""
    names = [
        name.removesuffix(".json")
        for name in storage.listing(storage.join(storage_root, FOLDER))
        if name.endswith(".json")
    ]
    tombstones = [tombstone for name in names if (tombstone := find(storage_root, name)) is not None]
    return {sample_id: tombstone.request for tombstone in tombstones for sample_id in tombstone.sample_ids}


def require_not_buried(storage_root: str, items: Iterable[Item]) -> None:
    """Raise `InputError` when a purged sample is about to be ingested again."""
    purged = buried(storage_root)
    again = sorted(item.sample_id for item in items if item.sample_id in purged) if purged else []
    if again:
        raise InputError(
            f"source: {len(again)} images were purged and must not be ingested again, the first is"
            f" {again[0]!r} (request {purged[again[0]]!r}); expected a source without them: remove them"
            " from it"
        )


def find(storage_root: str, request: str) -> Tombstone | None:
    """The tombstone of `request`, None when it was never purged."""
    uri = _uri(storage_root, request)
    return storage.read_model(uri, Tombstone) if storage.exists(uri) else None


def _uri(storage_root: str, request: str) -> str:
    return storage.join(storage_root, FOLDER, f"{request}.json")
