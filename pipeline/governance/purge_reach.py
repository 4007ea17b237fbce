"""How far a purge reaches: the ids that are buried, the partitions of other requests that hold their rows,
and what it leaves where it is, by name."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline import storage
from pipeline.config import RegistryConfig
from pipeline.data.lake import Lake, find_lake, lake_uri
from pipeline.data.parquet_shards import FLIP_MARK, File, read_column
from pipeline.data.partition import Partition
from pipeline.data.tombstones import Buried
from pipeline.errors import InputError
from pipeline.governance.purge_siblings import COMPARISONS, GENERATED, MAY_SHOW
from pipeline.reports.pages import RESULT, SAMPLES, picture
from pipeline.requests import ledger, samples
from pipeline.tracking.mlflow_runs import client
from pipeline.tracking.registry import RUN_ID_TAG, versions

NEVER_KNOWN = (
    "copies that nothing here knows of: backups and mirrors of this storage, the raw images they were made"
    " of, downloads of versions and reports, logs of other systems"
)
OF_PICTURES = re.compile(rf"((?:{GENERATED}|{COMPARISONS})/.+), {MAY_SHOW}")
OF_LAKE = re.compile(r"the lake (\S+) \(\d+ of these rows;")


def whole_classes(request: Mapping[str, Any]) -> list[int]:
    """The classes that the request of a stored config.yaml forgets whole. Earlier ones named the classes of
    their samples under the same key."""
    if request.get("sample_ids") and "sample_classes" not in request:
        return []
    return list(request["classes"])


def answer_of(request: Mapping[str, Any], request_id: str) -> dict[str, Any] | None:
    """The deletion request `request_id` among those that a stored request answers, None where it names none
    of that id."""
    return next((one for one in request.get("answers") or [] if one["id"] == request_id), None)


def scope_of(
    storage_root: str,
    request_id: str,
    settings: Sequence[Mapping[str, Any]],
    partitions: Iterable[Partition],
) -> tuple[set[int], set[str]]:
    """The labels and every sample id that the request is about: the forgotten rows of its partitions and, of
    classes that it forgets whole, all rows of the lake, those held out too. Of a run that answered several
    requests, what belongs to this one."""
    answers = [answer for one in settings if (answer := answer_of(one["request"], request_id))]
    named = _named_ids(storage_root, request_id, answers)
    whole = {
        (one["lake"], label)
        for one in settings
        for label in (answer_of(one["request"], request_id) or {"classes": whole_classes(one["request"])})[
            "classes"
        ]
    }
    whole_labels = {label for _, label in whole}
    labels, ids = set(whole_labels), set()
    if not answers:
        labels |= {label for one in settings for label in one["request"]["classes"]}
    for part in partitions:
        for file in part.forgotten_images:
            names = _names(part.uri, file)
            own = names if not answers or file.label in whole_labels else names & named
            ids |= own
            labels |= {file.label} if own else set()
    for name in sorted({lake for lake, _ in whole}):
        if (lake := find_lake(lake_uri(storage_root, name))) is not None:
            for shard in lake.manifest.shards:
                ids |= _names(lake.uri, shard) if (name, shard.label) in whole else set()
    return labels, ids


def _named_ids(storage_root: str, request_id: str, answers: Sequence[Mapping[str, Any]]) -> set[str]:
    """The samples that a request of the ledger names. Raises `InputError` when their list is gone: of the
    rows of a run that answered several, nobody else knows which are this one's."""
    if not any(answer["sample_count"] for answer in answers):
        return set()
    terms = ledger.read(storage_root).find(request_id).terms
    uri = terms.samples.uri if terms.samples else ""
    ids = samples.read_list(uri)
    if terms.samples is None or storage.digest_of(ids) != terms.samples.digest:
        raise InputError(
            f"request {request_id}: {uri} does not list the ids that it was submitted with; restore the file"
        )
    return {name.removesuffix(FLIP_MARK) for name in ids}


def _names(root: str, file: File) -> set[str]:
    return {name.removesuffix(FLIP_MARK) for name in read_column(root, file, "sample_id")}


def holding(
    partitions: Sequence[Partition], ids: set[str], purged: Buried, labels: set[int]
) -> dict[str, int]:
    """By digest, how many of `ids`, or of those that were purged before, lie in each of `partitions`."""
    counts = {}
    for part in partitions:
        manifest = part.manifest
        sides = [*manifest.forget, *manifest.exchange]
        if not labels & {*manifest.retain_labels, *(file.label for file in sides)}:
            continue
        names = {name for file in [*manifest.retain, *sides] for name in _names(part.uri, file)}
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
            lines.append(lake_line(lake, count))
    for digest in sorted({base_digest(config.storage, result) for result in results.values()}):
        lines.append(f"the base model (digest {digest[:12]}), which was trained on them")
    for name in sorted({str(one["tracking"]["model_name"]) for one in settings.values()}):
        lines += _versions(config, name, next(iter(settings.values()))["tracking"], results)
    return [*lines, NEVER_KNOWN]


def lake_line(lake: Lake, count: int) -> str:
    """What is said of a lake that holds `count` rows of a purged request; `OF_LAKE` reads it back."""
    return (
        f"the lake {lake.uri} ({count} of these rows; `jobs/prepare_data.py --without-buried` writes their"
        f" classes again without them){_raw(lake)}"
    )


def still_left(storage_root: str, left: Sequence[str], request_id: str, purged: Buried) -> list[str]:
    """Those lines of the purge of `request_id` that still hold: not that of a lake which was written again
    without the rows since, nor of pictures that were removed."""

    def holds(line: str) -> bool:
        if pictures := OF_PICTURES.match(line):
            return storage.exists(storage.join(storage_root, pictures[1]))
        match = OF_LAKE.match(line)
        lake = find_lake(match[1]) if match else None
        return lake is None or any(purged.request_of(name) == request_id for name in _every_id(lake))

    return [line for line in left if holds(line)]


def base_digest(storage_root: str, result: Mapping[str, Any]) -> str:
    """The digest of the weights that were trained on the data: where a run started from a version, those that
    this version's own run came from, and so on back; as far as the runs are there."""
    version = result.get("base_version")
    if not version:
        return str(result["base_digest"])
    for run_id in storage.listing(storage.join(storage_root, "runs")):
        uri = storage.join(storage_root, "runs", run_id, RESULT)
        if storage.exists(uri):
            earlier = storage.read_json(uri)
            model = earlier.get("model") or {}
            if (model.get("name"), model.get("version")) == (version["name"], version["version"]):
                return base_digest(storage_root, earlier)
    return str(result["base_digest"])


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
    return sum(name.removesuffix(FLIP_MARK) in ids for name in _every_id(lake))


def _every_id(lake: Lake) -> Iterator[str]:
    for shard in lake.manifest.shards:
        yield from read_column(lake.uri, shard, "sample_id")


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
    numbers, were = ", ".join(map(str, others)), "was" if len(others) == 1 else "were"
    noun = "version" if len(others) == 1 else "versions"
    return [f"{noun} {numbers} of {name}, which {were} made for other requests and may still give them"]
