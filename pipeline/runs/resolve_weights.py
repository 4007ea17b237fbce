"""Which weights are meant: an alias, a version's number, a run's id, a checkpoint of a run, or any folder of
weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline import fetching, storage
from pipeline.config import UnlearnConfig, parse_stored
from pipeline.config.evaluate import EvaluateConfig
from pipeline.data.tombstones import open_lake
from pipeline.errors import InputError
from pipeline.runs import registered, run_weights
from pipeline.weights import model_folder

if TYPE_CHECKING:
    from torch import Tensor

SETTINGS, MODEL, CHECKPOINTS = "config.yaml", "model", "checkpoints"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Weights to measure. `run` is the configuration of the run they came from, None for a folder that no run
    made."""

    title: str  # in words
    description: dict[str, Any]  # config.json
    state: Mapping[str, "Tensor"] = field(repr=False)
    digest: str
    autoencoder: Mapping[str, "Tensor"] | None = field(default=None, repr=False)  # of a model of latents
    run_id: str | None = None
    run: UnlearnConfig | None = None

    @property
    def stored(self) -> model_folder.Stored:
        return model_folder.Stored(
            uri=self.title,
            config=self.description,
            state=self.state,
            digest=self.digest,
            manifest={},
            autoencoder=self.autoencoder,
        )


def find(config: EvaluateConfig) -> Target:
    """What `version` (and `checkpoint`) mean. Raises `InputError` that says what was looked for and where."""
    which = config.version
    if "/" in which:
        if config.checkpoint:
            raise InputError(
                f"checkpoint: got {config.checkpoint!r} with the folder {which}; give a run id as version, or"
                " the checkpoint's own folder"
            )
        return _folder(fetching.locate(which))
    run_uri = storage.join(config.storage, "runs", which)
    if not which.isdigit() and storage.exists(storage.join(run_uri, SETTINGS)):
        return _of_run(run_uri, config.checkpoint, f"run {which}")
    return _registered(config)


def of_run(run_uri: str) -> UnlearnConfig | None:
    """The configuration of the run in folder `run_uri`, None when that is no run's folder."""
    uri = storage.join(run_uri, SETTINGS)
    if not storage.exists(uri):
        return None
    values = storage.read_yaml(uri)
    root, folder, _ = run_uri.rsplit("/", 2)
    if folder == "runs":  # <root>/runs/<id>, wherever the root was when the run was made
        values["storage"] = root
    return parse_stored(UnlearnConfig, values)


def base_of(run: UnlearnConfig) -> model_folder.Stored:
    """The base model of a run, with its decoder where the run's lake holds latents."""
    return run_weights.read_base(run, open_lake(run.storage, run.lake))


def named_model(storage_root: str, name_or_uri: str) -> str:
    """`name` under the storage root's models; anything with a slash is a path, a URI or a Hugging Face id."""
    return (
        fetching.locate(name_or_uri)
        if "/" in name_or_uri
        else storage.join(storage_root, "models", name_or_uri)
    )


def _registered(config: EvaluateConfig) -> Target:
    from pipeline.tracking import alias_log, version_check
    from pipeline.tracking.registry import RUN_ID_TAG, resolve

    try:
        version = resolve(config.tracking, config.storage, config.version)
    except InputError as error:
        raise InputError(f"{error}; a run's id or a folder of weights will do as well") from error
    title, run_id = f"{version.name} version {version.version}", version.tags.get(RUN_ID_TAG, "")
    run_uri = storage.join(config.storage, "runs", run_id)
    run = of_run(run_uri) if run_id else None
    if run is not None:
        entries = alias_log.read(config.storage, version.name)
        version_check.require_config(version, entries, storage.join(run_uri, SETTINGS))
    if config.checkpoint:
        return _of_run(run_uri, config.checkpoint, title)
    stored = registered.read(config.tracking, config.storage, version, "version")
    return _whole(stored, title, run_id or None, run)


def _whole(stored: model_folder.Stored, title: str, run_id: str | None, run: UnlearnConfig | None) -> Target:
    """Weights that lie in a folder as a whole."""
    return Target(
        title=title,
        description=stored.config,
        state=stored.state,
        digest=stored.digest,
        autoencoder=stored.autoencoder,
        run_id=run_id,
        run=run,
    )


def _of_run(run_uri: str, checkpoint: str | None, title: str) -> Target:
    run = of_run(run_uri)
    if run is None:
        raise InputError(
            f"checkpoint: no run at {run_uri}, expected its {SETTINGS}; give a checkpoint's folder as version"
        )
    if checkpoint:
        return _checkpoint(_chosen(run_uri, checkpoint), run_uri, run)
    if not storage.exists(storage.join(run_uri, MODEL, model_folder.MANIFEST)):
        raise InputError(
            f"version: {title} is not finished; measure a checkpoint of it with --set checkpoint=last"
        )
    stored = model_folder.read(storage.join(run_uri, MODEL), "version")
    return _whole(stored, title, run.run_id, run)


def _folder(uri: str) -> Target:
    from pipeline.training.checkpoint import parts_of

    parent = uri.rsplit("/", 1)[0]
    if parts_of(storage.listing(uri)):
        for run_uri in (parent.rsplit("/", 1)[0], parent, parent.rsplit("/", 2)[0]):
            run = of_run(run_uri)
            if run is not None:
                return _checkpoint(uri, run_uri, run)
        raise InputError(
            f"version: {uri} is a checkpoint, but no run's {SETTINGS} lies above it; expected"
            f" <run>/{CHECKPOINTS}/<checkpoint>"
        )
    stored = model_folder.read(uri, "version")
    run = of_run(parent)
    return _whole(stored, uri, run.run_id if run else None, run)


def _chosen(run_uri: str, checkpoint: str) -> str:
    """The checkpoint's folder: by name, or the one of the most steps."""
    from pipeline.training.checkpoint import STATE, parts_of

    if "/" in checkpoint:
        return storage.absolute(checkpoint)
    files: dict[str, list[str]] = {}
    for path in storage.walk(storage.join(run_uri, CHECKPOINTS)):
        folder, _, name = path.rpartition("/")
        files.setdefault(folder, []).append(name)
    parts = {folder: parts_of(names) for folder, names in files.items()}
    checkpoints = {folder: storage.join(run_uri, CHECKPOINTS, folder) for folder in files if parts[folder]}
    for folder, uri in checkpoints.items():
        if folder.rsplit("/", 1)[-1] == checkpoint:
            return uri
    if checkpoint == "last" and checkpoints:

        def iteration(folder: str) -> int:
            first = parts[folder][0]
            name = first.file(STATE) if first else STATE
            return int(storage.read_json(storage.join(checkpoints[folder], name))["iteration"])

        return checkpoints[max(checkpoints, key=iteration)]
    names = ", ".join(sorted(folder.rsplit("/", 1)[-1] for folder in checkpoints)) or "none"
    raise InputError(
        f"checkpoint: got {checkpoint!r}, expected last or one of those under {run_uri}: {names}"
    )


def _checkpoint(uri: str, run_uri: str, run: UnlearnConfig) -> Target:
    """The averaged trained subset of a checkpoint on the run's base."""
    from models.weights import weights_digest
    from pipeline.training import checkpoint as checkpoints

    try:
        checkpoint = checkpoints.read(uri)
    except ValueError as error:
        raise InputError(f"checkpoint: {uri}: {error}; expected a whole checkpoint of a run") from error
    base = base_of(run)
    state = {**base.state, **checkpoint.average}
    return Target(
        title=(
            f"checkpoint {uri.rsplit('/', 1)[-1]} of run {run.run_id}, step"
            f" {checkpoint.iteration - run.optim.moment_warmup_steps}"
        ),
        description=base.config,
        state=state,
        digest=weights_digest(state),
        autoencoder=base.autoencoder,
        run_id=run.run_id,
        run=run,
    )
