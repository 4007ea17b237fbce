"""A lake written again without what was purged: the classes that hold such rows, and no other."""

from collections.abc import Iterable

from pipeline import storage
from pipeline.data import parquet_shards
from pipeline.data.ingest import remove_leftovers
from pipeline.data.lake import MANIFEST, Lake
from pipeline.data.parquet_shards import Shard
from pipeline.data.tombstones import Buried
from pipeline.errors import InputError


def require_nothing_buried(lake: Lake, purged: Buried) -> None:
    """Raise `InputError` for a complete lake (as `without_buried` gives it) that holds purged rows."""
    if not lake.buried:
        return
    requests = sorted(set(purged.by_id.values()) | set(purged.by_hash.values()))
    rows, labels = sum(map(len, lake.buried.values())), sorted(affected(lake))
    raise InputError(
        f"the lake {lake.uri} holds {rows} rows that were purged (requests {', '.join(requests[:5])}), of"
        f" classes {', '.join(map(str, labels[:10]))}; nothing reads them, but they are still there:"
        " --without-buried writes those classes again without them"
    )


def affected(lake: Lake) -> set[int]:
    """The classes that hold purged rows."""
    return {shard.label for shard in lake.manifest.shards if shard.path in lake.buried}


def rewrite(lake: Lake) -> Lake:
    """The lake on disk without its purged rows. Shards that hold some are written beside the old ones, then
    the manifest, then the old ones go: killed in between, the same call completes it."""
    manifest = lake.manifest
    shards = [shard for old in manifest.shards if (shard := _without(lake, old)) is not None]
    classes = [
        item.model_copy(
            update={f"{split}_rows": _rows(shards, item.label, split) for split in ("train", "heldout")}
        )
        for item in manifest.classes
    ]
    following = manifest.model_copy(
        update={"shards": sorted(shards, key=lambda shard: shard.path), "classes": classes}
    )
    storage.write_json(storage.join(lake.uri, MANIFEST), following.model_dump(mode="json"))
    remove_leftovers(lake.uri, following.shards)
    return Lake(uri=lake.uri, manifest=following)


def _without(lake: Lake, shard: Shard) -> Shard | None:
    """`shard` without its purged rows, under a name of its own; None when nothing is left of it."""
    rows = lake.buried.get(shard.path)
    if not rows:
        return shard
    if len(rows) == shard.rows:
        return None
    manifest = lake.manifest
    table = parquet_shards.drop_rows(parquet_shards.read(lake.uri, shard), rows)
    ids = storage.digest_of(table["sample_id"].to_pylist())
    path = f"{shard.path.removesuffix('.parquet').split('~')[0]}~{ids[:8]}.parquet"
    return parquet_shards.write(
        lake.uri, path, [table], manifest.kind, manifest.shape, label=shard.label, split=shard.split
    )


def _rows(shards: Iterable[Shard], label: int, split: str) -> int:
    return sum(shard.rows for shard in shards if shard.label == label and shard.split == split)
