"""What is left of a finished request: what a purge removes, and what it has to leave."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.config import RegistryConfig
from pipeline.config.commands import continue_command
from pipeline.data import tombstones
from pipeline.data.partition import Partition, find_partition
from pipeline.errors import InputError
from pipeline.governance.purge_reach import answer_of, holding, left_behind, scope_of, shown_elsewhere
from pipeline.governance.purge_siblings import (
    GENERATED,
    Sweep,
    audited,
    generated,
    pictures_left,
    sweeps_of,
    trial_files,
)
from pipeline.reports.pages import GRIDS, REPORT, RESULT, SAMPLES, SETTINGS, picture, read_grids
from pipeline.tracking import artifact_store, moved_root
from pipeline.tracking.mlflow_runs import client, find_run

if TYPE_CHECKING:
    from pipeline.tracking.mlflow_runs import MlflowClient

# a run's config.yaml as it lies there: one written by another version must not stop a purge
Settings = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run of the request and what it keeps of the forgotten labels: files under its folder,
    artifacts in MLflow."""

    run_id: str
    uri: str
    settings: Settings
    result: dict[str, Any]
    files: list[str]
    artifacts: list[str]


@dataclass(frozen=True, kw_only=True)
class Purge:
    """What a purge removes. `others`: partitions of other requests that hold the rows as ones to retain, made
    again without them when they are needed. `left` are places that may hold the forgotten rows and that a
    purge does not reach."""

    request: str
    labels: list[int]
    sample_ids: set[str] = field(repr=False)
    partitions: list[Partition]
    others: dict[str, int]  # URI -> how many of the rows
    runs: list[Run]
    sweeps: list[Sweep]
    generated: list[str]
    left: list[str]

    @property
    def lines(self) -> list[str]:
        """One line for each thing that goes, or is made again without what was sampled under the labels."""
        sides = [
            f"partition {part.uri} ({sum(file.rows for file in part.manifest.forget)} forgotten rows)"
            for part in self.partitions
        ]
        sides += [
            f"partition {uri}, another request's, which holds {count} of these rows"
            for uri, count in self.others.items()
        ]
        files = [_line(name, storage.join(run.uri, name)) for run in self.runs for name in run.files]
        artifacts = [
            _line(name, f"MLflow artifact {name} of run {run.run_id}")
            for run in self.runs
            for name in run.artifacts
        ]
        trials = [_line(name, storage.join(sweep.uri, name)) for sweep in self.sweeps for name in sweep.files]
        return sides + files + artifacts + trials + self.generated

    @property
    def files(self) -> dict[str, list[str]]:
        """For the tombstone: the files by run, by sweep, and those that were pictures afterwards."""
        sweeps = {f"sweeps/{sweep.sweep_id}": sweep.files for sweep in self.sweeps if sweep.files}
        pictures = {GENERATED: [uri.rsplit("/", 1)[1] for uri in self.generated]} if self.generated else {}
        return {run.run_id: run.files for run in self.runs} | sweeps | pictures


def _line(name: str, where: str) -> str:
    return where if name.endswith(".png") else f"the forgotten labels' pictures in {where}"


def with_full_id(config: RegistryConfig) -> RegistryConfig:
    """`config` with the whole id of its request where it gives what stands between lake and digest of a
    default id (`forget-1` of `digits-forget-1-afadfcb397`) and one request alone is called so."""
    given = re.compile(rf".+-{re.escape(config.request or '')}-[0-9a-f]{{10}}")
    known = {str(settings["request"]["id"]) for settings in _runs(config.storage).values()}
    called_so = [name for name in known if given.fullmatch(name)]
    if not config.request or config.request in known or len(called_so) != 1:
        return config
    return config.model_copy(update={"request": called_so[0]})


def find(config: RegistryConfig) -> Purge:
    """What is left of `config.request`. Raises `InputError` when there is no such request, or a run that
    needs its data is unfinished."""
    if not config.request:
        raise InputError("request: got none, expected the id of the request to purge: --request <id>")
    every_run = _runs(config.storage)
    mine = {
        run_id: settings
        for run_id, settings in every_run.items()
        if settings["request"]["id"] == config.request or answer_of(settings["request"], config.request)
    }
    earlier = tombstones.find(config.storage, config.request)
    sweeps = sweeps_of(config.storage, config.request)
    if not mine and not sweeps and earlier is None:
        known = sorted({str(settings["request"]["id"]) for settings in every_run.values()})
        raise InputError(
            f"request: got {config.request!r}, expected one with a run under {config.storage}:"
            f" {', '.join(known) or 'none yet'}"
        )
    _require_finished(config.storage, every_run, mine, sweeps)
    results = {
        run_id: storage.read_json(storage.join(config.storage, "runs", run_id, RESULT)) for run_id in mine
    }
    every = _partitions(config.storage)
    partitions = _of_request(every, list(results.values()), sweeps)
    of_request = [*mine.values(), *(sweep.settings for sweep in sweeps)]
    own_labels, ids = scope_of(config.storage, config.request, of_request, partitions)
    labels = sorted(own_labels | set(earlier.labels if earlier else []))
    versions = [
        (result["model"]["name"], int(result["model"]["version"])) for _, result in sorted(results.items())
    ]
    used = {part.digest for part in partitions}
    rest = [part for part in every if part.digest not in used]
    held = holding(rest, ids, tombstones.buried(config.storage), set(labels))
    others = [part for part in rest if part.digest in held]
    _require_unused(config.storage, every_run, others)
    drawn = generated(config.storage, versions)
    runs = [
        _look(config, run_id, settings, results[run_id], labels) for run_id, settings in sorted(mine.items())
    ]
    unknown = [
        f"the partitions of sweep {sweep.sweep_id}, whose list of samples is gone"
        for sweep in sweeps
        if sweep.content is None
    ]
    going = [
        *(run.uri for run in runs),
        *(part.uri for part in [*partitions, *others]),
        *(sweep.uri for sweep in sweeps),
        *drawn,
        *(storage.join(config.storage, name) for name in (moved_root.ARTIFACTS, tombstones.FOLDER)),
    ]
    moved_root.require_inside(going, config.storage)
    return Purge(
        request=config.request,
        labels=labels,
        sample_ids=ids,
        partitions=partitions,
        others={part.uri: held[part.digest] for part in others},
        runs=runs,
        sweeps=[replace(sweep, files=trial_files(sweep, labels)) for sweep in sweeps],
        generated=drawn,
        left=[
            *left_behind(config, mine, results, [settings["lake"] for settings in of_request], ids),
            *shown_elsewhere(config.storage, every_run.keys() - mine.keys(), labels),
            *pictures_left(config.storage, drawn),
            *audited(config.storage, mine.values(), labels),
            *unknown,
        ],
    )


def _runs(storage_root: str) -> dict[str, Settings]:
    """The settings of every run under the root that has any."""
    settings = {}
    for run_id in storage.listing(storage.join(storage_root, "runs")):
        uri = storage.join(storage_root, "runs", run_id, SETTINGS)
        if storage.exists(uri):
            settings[run_id] = storage.read_yaml(uri)
    return settings


def _require_finished(
    storage_root: str,
    settings_of_runs: dict[str, Settings],
    mine: dict[str, Settings],
    sweeps: Sequence[Sweep],
) -> None:
    """Partitions go by content, so a run of another request that forgets the same data may be reading them
    too."""
    if unfinished := [sweep for sweep in sweeps if not sweep.finished]:
        raise InputError(
            f"request {unfinished[0].settings['request']['id']}: its sweep"
            f" {unfinished[0].sweep_id} is unfinished and"
            f" needs the data; complete it, or remove {unfinished[0].uri} first"
        )
    forgotten = [_forgotten(settings) for settings in mine.values()]
    for run_id, settings in sorted(settings_of_runs.items()):
        uri = storage.join(storage_root, "runs", run_id)
        if (run_id in mine or _forgotten(settings) in forgotten) and not storage.exists(
            storage.join(uri, RESULT)
        ):
            raise InputError(
                f"request {settings['request']['id']}: its run {run_id} is unfinished and needs the data;"
                f" complete it with `{continue_command(storage_root, run_id)}`, or remove {uri} first"
            )


def _require_unused(
    storage_root: str, settings_of_runs: dict[str, Settings], others: Sequence[Partition]
) -> None:
    """Another request's run that is unfinished needs its partition as it is."""
    classes = [part.manifest.key["classes"] for part in others]
    for run_id, settings in sorted(settings_of_runs.items()):
        uri = storage.join(storage_root, "runs", run_id)
        if storage.exists(storage.join(uri, RESULT)) or sorted(settings["request"]["classes"]) not in classes:
            continue
        raise InputError(
            f"request {settings['request']['id']}: its run {run_id} is unfinished and retains rows that are"
            f" to go; complete it with `{continue_command(storage_root, run_id)}`, or remove {uri} first"
        )


def _forgotten(settings: Settings) -> tuple[Any, ...]:
    request = settings["request"]
    return sorted(request["classes"]), request["sample_ids"], settings["lake"]


def _partitions(storage_root: str) -> list[Partition]:
    root = storage.join(storage_root, "partitions")
    partitions = (find_partition(storage.join(root, name)) for name in storage.listing(root))
    return [part for part in partitions if part is not None]


def _of_request(
    every: Sequence[Partition], results: Sequence[dict[str, Any]], sweeps: Sequence[Sweep]
) -> list[Partition]:
    """The partitions that runs and sweeps used, and those cut otherwise (another seed, batch, policy) for the
    same rows of a lake."""
    used = {result["partition_digest"] for result in results}
    content = {_content(part) for part in every if part.digest in used}
    content |= {
        (*sorted(r["request"]["classes"]), None, r["lake_digest"])
        for r in results
        if not r["request"].get("sample_ids")
    }
    content |= {sweep.content for sweep in sweeps if sweep.content is not None}
    return [part for part in every if part.digest in used or _content(part) in content]


def _content(part: Partition) -> tuple[Any, ...]:
    key = part.manifest.key
    whole = [("whole", label) for label in key.get("whole_classes", [])]  # beside named samples
    return (*key["classes"], *whole, key["sample_ids"], key["lake"])


def _look(
    config: RegistryConfig, run_id: str, settings: Settings, result: dict[str, Any], labels: Sequence[int]
) -> Run:
    """What the run keeps of `labels`. Its report counts as long as its tensors hold one of them: it is
    written again from the rest."""
    uri = storage.join(config.storage, "runs", run_id)
    pictures = [picture(moment, label) for moment in GRIDS for label in labels]
    tensors = [
        f"{SAMPLES}/{moment}.safetensors"
        for moment, grids in read_grids(uri).items()
        if set(labels) & grids.keys()
    ]
    samples = {f"{SAMPLES}/{name}" for name in storage.listing(storage.join(uri, SAMPLES))}
    files = [name for name in pictures if name in samples]
    if tensors and storage.exists(storage.join(uri, REPORT)):
        files.append(REPORT)
    artifacts = []
    mlflow, mlflow_run = mlflow_run_of(config, settings, run_id)
    if mlflow_run is not None:
        there = {item.path for item in artifact_store.listing(mlflow, mlflow_run, SAMPLES)}
        artifacts = [name for name in pictures if name in there]
        if tensors and any(item.path == REPORT for item in artifact_store.listing(mlflow, mlflow_run)):
            artifacts.append(REPORT)
    return Run(
        run_id=run_id,
        uri=uri,
        settings=settings,
        result=result,
        files=[*files, *tensors],
        artifacts=artifacts,
    )


def mlflow_run_of(
    config: RegistryConfig, settings: Settings, run_id: str
) -> tuple["MlflowClient", str | None]:
    """A client, and MLflow's id of the run, None where it has none. The store is the one given now, else the
    run's own; a database under the storage root is the one of this root, wherever the root was then."""
    tracking = settings["tracking"]
    uri, then = config.tracking.uri or tracking["uri"], f"sqlite:///{settings['storage']}/"
    if uri and uri.startswith(then) and storage.is_local(config.storage):
        uri = f"sqlite:///{storage.join(config.storage, uri.removeprefix(then))}"
    mlflow = client(config.tracking.model_copy(update={"uri": uri}), config.storage, create=False)
    experiment = mlflow.get_experiment_by_name(tracking["experiment"])
    run = None if experiment is None else find_run(mlflow, experiment.experiment_id, run_id)
    if run is not None:
        moved_root.require_own(mlflow.get_run(run).info.artifact_uri, config.storage)
    return mlflow, run
