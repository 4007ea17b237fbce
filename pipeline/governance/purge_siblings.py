"""What lies beside a request's runs and holds something of its data: the trials of its sweeps, pictures
sampled from its versions."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline import storage
from pipeline.reports.pages import SAMPLES, SETTINGS, grid_uri, read_grids
from pipeline.tracking import alias_log

SUMMARY = "sweep.json"  # what a sweep leaves last
GENERATED = "generated"  # where jobs/generate.py puts its pictures unless it is told another place
COMPARISONS = "comparisons"  # where jobs/compare_methods.py leaves pictures and pages
MAY_SHOW = "which may show these labels"  # a picture does not say which labels it is of


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One sweep of the request. `content` says what its partitions were cut of: classes, digest of the named
    samples, lake; None where samples were named and their list is gone. `files`: its trials' tensors, under
    `uri`, that hold pictures of forgotten labels."""

    sweep_id: str
    uri: str
    settings: dict[str, Any]  # of the main job that its trials start from
    content: tuple[Any, ...] | None
    finished: bool
    files: list[str] = field(default_factory=list)


def sweeps_of(storage_root: str, request_id: str) -> list[Sweep]:
    """Every sweep under the root that was made for the request; `files` are still to be looked for."""
    root = storage.join(storage_root, "sweeps")
    of_request = []
    for name in storage.listing(root):
        uri = storage.join(root, name)
        if not storage.exists(storage.join(uri, SETTINGS)):
            continue
        described = storage.read_yaml(storage.join(uri, SETTINGS))
        settings = described["base"]
        request = settings["request"]
        if request["id"] == request_id:
            ids_uri, ids = request["sample_ids"], _ids_digest(request["sample_ids"])
            # as in a partition's key; before there was a key of their own, `classes` said where samples are
            labels = request.get("sample_classes", request["classes"]) if ids_uri else request["classes"]
            content = (
                None if ids_uri and ids is None else (*sorted(labels), ids, described["digests"]["lake"])
            )
            finished = storage.exists(storage.join(uri, SUMMARY))
            of_request.append(
                Sweep(sweep_id=name, uri=uri, settings=settings, content=content, finished=finished)
            )
    return of_request


def _ids_digest(where: str | None) -> str | None:
    """As a partition's key has it."""
    from pipeline.data.selection import read_ids

    if where is None or not storage.exists(storage.absolute(where)):
        return None
    return storage.digest_of(sorted(set(read_ids(where, "request.sample_ids"))))


def trial_files(sweep: Sweep, labels: Sequence[int]) -> list[str]:
    """The tensors of the sweep's trials that hold pictures of `labels`."""
    trials = [f"trials/{name}" for name in storage.listing(storage.join(sweep.uri, "trials"))]
    return [
        f"{trial}/{SAMPLES}/{moment}.safetensors"
        for trial in trials
        for moment, grids in read_grids(storage.join(sweep.uri, trial)).items()
        if set(labels) & grids.keys()
    ]


def clean_trials(sweep: Sweep, labels: Sequence[int]) -> None:
    """Write the tensors that `sweep.files` names again without `labels`."""
    for trial in sorted({name.rsplit("/", 2)[0] for name in sweep.files}):
        write_without(storage.join(sweep.uri, trial), read_grids(storage.join(sweep.uri, trial)), labels)


def write_without(run_uri: str, grids: Mapping[str, Mapping[int, Any]], labels: Sequence[int]) -> None:
    """The sample tensors of a run or trial, without `labels`."""
    import torch

    from models.weights import to_bytes

    for moment, by_label in grids.items():
        remaining = {
            str(label): torch.from_numpy(images) for label, images in by_label.items() if label not in labels
        }
        storage.write_bytes(grid_uri(run_uri, moment), to_bytes(remaining))


def generated(storage_root: str, versions: Sequence[tuple[str, int]]) -> list[str]:
    """The pictures that jobs/generate.py drew of these versions (model, number), by URI. Each holds several
    labels and goes as a whole."""
    folder = storage.join(storage_root, GENERATED)
    there = set(storage.listing(folder))
    return [
        storage.join(folder, name)
        for model, number in versions
        if (name := f"{model}-v{number}.png") in there
    ]


def pictures_left(storage_root: str, removed: Collection[str]) -> list[str]:
    """A line for each picture that jobs/generate.py wrote under the root, `removed` (URIs) left out, and each
    folder and page of a comparison: of other versions, before the request or in an audit."""
    names = [f"{GENERATED}/{name}" for name in storage.walk(storage.join(storage_root, GENERATED))]
    names += [
        f"{COMPARISONS}/{name}"
        for name in storage.listing(storage.join(storage_root, COMPARISONS))
        if not name.endswith((".yaml", ".jsonl"))
    ]
    return [f"{name}, {MAY_SHOW}" for name in names if storage.join(storage_root, name) not in removed]


def audited(storage_root: str, settings: Iterable[Mapping[str, Any]], labels: Sequence[int]) -> list[str]:
    """Where audits of the models of these runs' `settings` put pictures of `labels`, outside of the folder
    that `pictures_left` lists."""
    folder = storage.join(storage_root, GENERATED, "")
    outputs = {
        str(entry.details["output"])
        for name in {str(one["tracking"]["model_name"]) for one in settings}
        for entry in alias_log.read(storage_root, name)
        if entry.action == "audit" and set(labels) & set(entry.details.get("labels", []))
    }
    return [
        f"{uri}, where an audit put pictures of these labels"
        for uri in sorted(outputs)
        if not uri.startswith(folder)
    ]
