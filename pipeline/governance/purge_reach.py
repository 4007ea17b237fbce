"""How far a purge reaches: the ids that are buried, the partitions of other requests that hold their rows,
and what it leaves where it is, by name."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline import storage
from pipeline.config import RegistryConfig
from pipeline.data.lake import Lake, find_lake, lake_uri
from pipeline.data.parquet_shards import FLIP_MARK, read_column
from pipeline.data.partition import Partition
from pipeline.data.tombstones import Buried
from pipeline.reports.pages import SAMPLES, picture
from pipeline.tracking.mlflow_runs import client
from pipeline.tracking.registry import RUN_ID_TAG, versions

NEVER_KNOWN = (
    "copies that nothing here knows of: backups and mirrors of this storage, the raw images they were made"
    " of, downloads of versions and reports, logs of other systems"
)


def whole_classes(request: Mapping[str, Any]) -> list[int]:
    """The classes that the request of a stored config.yaml forgets whole. Earlier ones named the classes of
    their samples under the same key."""
    if request.get("sample_ids") and "sample_classes" not in request:
        return []
    return list(request["classes"])


def sample_ids(
    storage_root: str, settings: Iterable[Mapping[str, Any]], partitions: Iterable[Partition]
) -> set[str]:
    """Every id that the request is about: the forgotten rows of its partitions and, of classes that it
    forgets whole, all rows of the lake, those held out too."""
    ids = {
        name
        for part in partitions
        for file in part.manifest.forget
        for name in read_column(part.uri, file, "sample_id")
    }
    wanted = {(one["lake"], label) for one in settings for label in whole_classes(one["request"])}
    for name in sorted({lake for lake, _ in wanted}):
        lake = find_lake(lake_uri(storage_root, name))
        for shard in lake.manifest.shards if lake else ():
            if lake is not None and (name, shard.label) in wanted:
                ids |= set(read_column(lake.uri, shard, "sample_id"))
    return {name.removesuffix(FLIP_MARK) for name in ids}


def holding(
    partitions: Sequence[Partition], ids: set[str], purged: Buried, labels: Sequence[int]
) -> dict[str, int]:
    """By digest, how many of `ids`, or of those that were purged before, lie in each of `partitions`."""
    counts = {}
    for part in partitions:
        manifest = part.manifest
        if not set(labels) & {*manifest.retain_labels, *(file.label for file in manifest.exchange)}:
            continue
        names = {
            name.removesuffix(FLIP_MARK)
            for file in [*manifest.retain, *manifest.exchange]
            for name in read_column(part.uri, file, "sample_id")
        }
        if held := (names & ids) | purged.among(names).keys():
            counts[part.digest] = len(held)
    return counts


def left_behind(
    config: RegistryConfig,
    settings: Mapping[str, Mapping[str, Any]],
    results: Mapping[str, Mapping[str, Any]],
    lakes: Sequence[str],
    ids: set[str],
) -> list[str]:
    """What the purge does not reach, a line each: lakes, base models, versions of other runs, copies
    elsewhere. `settings` and `results` are of the request's runs, by run id."""
    lines = []
    for uri in sorted({lake_uri(config.storage, name) for name in lakes}):
        lake = find_lake(uri)
        if lake is not None and (count := _rows(lake, ids)):
            lines.append(
                f"the lake {uri} ({count} of these rows; `jobs/prepare_data.py --without-buried` writes their"
                f" classes again without them){_raw(lake)}"
            )
    for digest in sorted({str(result["base_digest"]) for result in results.values()}):
        lines.append(f"the base model (digest {digest[:12]}), which was trained on them")
    for name in sorted({str(one["tracking"]["model_name"]) for one in settings.values()}):
        lines += _versions(config, name, next(iter(settings.values()))["tracking"], results)
    return [*lines, NEVER_KNOWN]


def shown_elsewhere(storage_root: str, others: Iterable[str], labels: Sequence[int]) -> list[str]:
    """Other requests sample these labels too, as ones that they keep."""
    pictures = {picture("before", label) for label in labels}
    folders = {run_id: storage.join(storage_root, "runs", run_id, SAMPLES) for run_id in sorted(others)}
    showing = [
        run_id
        for run_id, folder in folders.items()
        if pictures & {f"{SAMPLES}/{name}" for name in storage.listing(folder)}
    ]
    return (
        [f"grids of other requests' runs, which show these labels: {', '.join(showing)}"] if showing else []
    )


def _rows(lake: Lake, ids: set[str]) -> int:
    return sum(
        name.removesuffix(FLIP_MARK) in ids
        for shard in lake.manifest.shards
        for name in read_column(lake.uri, shard, "sample_id")
    )


def _raw(lake: Lake) -> str:
    uri = lake.manifest.source.get("uri")
    return f", and the raw images at {uri}" if uri else ""


def _versions(
    config: RegistryConfig,
    name: str,
    tracking: Mapping[str, Any],
    results: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """The versions of a model that come of none of the request's runs."""
    store = config.tracking.model_copy(update={"uri": config.tracking.uri or tracking["uri"]})
    others = sorted(
        int(version.version)
        for version in versions(client(store, config.storage, create=False), name)
        if version.tags.get(RUN_ID_TAG) not in results
    )
    if not others:
        return []
    numbers = ", ".join(map(str, others))
    return [f"versions {numbers} of {name}, which were made for other requests and may still give them"]
