"""A main job checked before anything is written: what it reads is there and fits together."""

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from models import weights
from models.generative import GenerativeModel, build, is_conditional
from models.judge import Judge, build_judge
from pipeline import config as configuration
from pipeline import storage
from pipeline.config import UnlearnConfig, parse_stored
from pipeline.config.commands import command
from pipeline.config.request import Answer
from pipeline.data.lake import Lake
from pipeline.data.selection import read_sample_ids, selections
from pipeline.data.stand_ins import StandIns
from pipeline.data.tombstones import open_lake
from pipeline.errors import InputError
from pipeline.evaluation.gate import judge_warning
from pipeline.evaluation.neighbours import confused_classes, nearest_classes
from pipeline.evaluation.rotation import require_rotation
from pipeline.runs import final_evaluation, run_weights, stand_ins
from pipeline.runs.registered import BaseVersion, with_base_version
from pipeline.runs.request_checks import answers_of, require_fit, resolve, with_own_settings
from pipeline.runtime import precision
from pipeline.seeding import seed_of
from pipeline.tracking.known_versions import require_log_known
from pipeline.tracking.mlflow_runs import client
from pipeline.training.judge_accuracy import tried
from pipeline.unlearning.parameters import label_parameter, select
from pipeline.weights import feature_extractors, model_folder

if TYPE_CHECKING:
    from pipeline.runs.memory_plan import Choice

REQUEST, SETTINGS = "request.yaml", "config.yaml"
# How a run is placed on a cluster and how patiently; nothing of what comes out depends on it, so a run may be
# continued with others.
HOW = (
    *("train.cpus_per_worker", "train.max_failures", "train.wait_s", "train.resize_s", "train.grace_s"),
    "train.label_selector",
    *("evaluate.cpus", "evaluate.timeout_s", "require_gate", "partition.held_bytes"),
)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A main job that was checked: everything it reads is there and fits together, nothing is written yet."""

    config: UnlearnConfig
    run_id: str
    run_uri: str
    lake: Lake
    base: model_folder.Stored
    judge: model_folder.Stored
    model: GenerativeModel
    trainable: int
    subject: dict[str, Any]
    choice: "Choice | None" = None  # how the step will be made on the GPUs that train.memory_gib speaks of
    uniformity_judge: model_folder.Stored | None = None  # None: the judge that measures
    answers: tuple[Answer, ...] = ()  # the deletion requests that the run answers
    base_version: BaseVersion | None = None  # the registered version it starts from
    # feature spaces beside the judge's
    features: Mapping[str, model_folder.Stored] = field(default_factory=dict)
    stand_ins: StandIns | None = None  # samples in the place of purged rows

    @property
    def one_judge(self) -> bool:
        """Whether a hat term has its gradient from the judge that measures."""
        return self.uniformity_judge is None or self.uniformity_judge.digest == self.judge.digest

    @property
    def sources(self) -> dict[str, Any]:
        """What `train_ray.train` reads beside the partition."""
        subject = self.subject | (
            {"uniformity_judge": self.uniformity_judge.uri} if self.uniformity_judge else {}
        )
        return {
            "lake_uri": self.lake.uri,
            "model_uri": self.base.uri,
            "judge_uri": self.judge.uri,
            "subject": subject,
        }


def check(config: UnlearnConfig) -> Prepared:
    """Raise `InputError` for anything that would stop the job later."""
    config = with_own_settings(config)
    lake = open_lake(config.storage, config.lake)
    labels = {item.label: item.name for item in lake.manifest.classes}
    config, base_version = with_base_version(_as_it_began(config), labels)
    config = resolve(config, labels, conditional=is_conditional(config.model.size))
    base, judge, features = (
        run_weights.read_base(config, lake),
        run_weights.read_judge(config),
        feature_extractors.read_spaces(config.features),
    )
    # looked at here, never run: it shares the base's tensors
    model = run_weights.built(partial(build, batch_norm=config.model.batch_norm, device="meta"), base)
    network = run_weights.built(build_judge, judge)
    try:
        weights.load_into(model.net, base.state, f"model.weights: {base.uri}", shared=True)
        weights.load_into(network.net, judge.state, f"judge.weights: {judge.uri}")
    except weights.WeightsError as error:
        raise InputError(str(error)) from error
    uniformity_judge = _fitting_uniformity_judge(config, judge)
    precision.require(config, base.config)
    if config.encoder.weights and lake.manifest.kind != "latent":
        raise InputError(
            f"encoder.weights: got {config.encoder.weights}, but lake {lake.manifest.name!r} holds pixels,"
            " which nothing decodes; expected none"
        )
    _require_same_classes(lake, base, model, judge)
    run_weights.require_same_names(lake, judge)
    require_fit(config, model)
    judge = tried(judge, network, lake)
    try:
        named = select(model, config.trainable)
    except ValueError as error:
        raise InputError(str(error)) from error
    moves = (
        "method.label_init: exchange"
        if config.method.label_init == "exchange"
        else "method.label_extrapolation"
        if config.method.label_extrapolation
        else None
    )
    if moves and label_parameter(model, named) is None:
        raise InputError(
            f"{moves} moves rows of the label table, which trainable {config.trainable} leaves out"
        )
    if config.tracking.pipeline and base.autoencoder is None:
        model_name = f"tracking.model_name={config.tracking.model_name}"
        export = "jobs/configs/export_imagenet.yaml", config.storage, model_name, "format=safetensors"
        raise InputError(
            "tracking.pipeline: got a model of pixels, expected one of latents with its autoencoder, which a"
            f" DiTPipeline needs; export the version as a state dict: `{command('export', *export)}`"
        )
    final_evaluation.check(config, lake, judge)
    classes, gone = config.request.classes, config.request.forgotten_classes
    retained = [item.label for item in lake.manifest.classes if item.label not in gone]
    near = _nearest(config, lake, model, network, retained) if classes else []
    run_id = config.run_id or new_run_id(str(config.request.id))
    prepared = Prepared(
        config=config,
        run_id=run_id,
        run_uri=storage.join(config.storage, "runs", run_id),
        lake=lake,
        base=base,
        judge=judge,
        model=model,
        trainable=sum(p.numel() for p in named.values()),
        subject={"retained": drawn_classes(config, retained, near), "neighbours": near},
        choice=run_weights.choose(config, base),
        uniformity_judge=uniformity_judge,
        features=features,
        answers=answers_of(config.request),
        base_version=base_version,
        stand_ins=stand_ins.of(config, lake, base, judge),
    )
    _require_same_settings(prepared)
    if not storage.exists(storage.join(prepared.run_uri, SETTINGS)):  # a run that was begun was served
        selections(config, lake, read_sample_ids(config.request), near)
    return prepared


def require_places(config: UnlearnConfig) -> None:
    """Raise `InputError` where the run could not write, or this machine, without a cluster, has not got its
    GPUs. Leaves nothing behind."""
    import torch

    storage.require_writable(config.storage)
    if config.tracking.uri and not _is_new_database(config.tracking.uri):
        client(config.tracking, config.storage, create=False)
    require_log_known(config.tracking, config.storage)
    gpus = config.train.fewest * config.train.gpus_per_worker
    if gpus > torch.cuda.device_count() and not os.environ.get("RAY_ADDRESS"):
        raise InputError(
            f"train.gpus_per_worker: got {config.train.gpus_per_worker:g} for {config.train.fewest} workers,"
            f" but this machine has {torch.cuda.device_count()} GPUs; ask for less, or set RAY_ADDRESS to a"
            " cluster that has them"
        )


def _is_new_database(uri: str) -> bool:
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()


def new_run_id(request_id: str) -> str:
    """A name of at most 100 characters, which a run's folder may have."""
    return f"{request_id[:78]}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"


def _as_it_began(config: UnlearnConfig) -> UnlearnConfig:
    """`config` with what the run it continues was given where it says nothing: the request's id, since how
    one is made up may have changed, and how it is attacked, since the defaults of that have."""
    uri = storage.join(config.storage, "runs", config.run_id or "", SETTINGS)
    if not config.run_id or not storage.exists(uri):
        return config
    stored = parse_stored(UnlearnConfig, {**storage.read_yaml(uri), "storage": config.storage})
    given = {name: getattr(config.attacks, name) for name in config.attacks.model_fields_set}
    request = config.request.model_copy(update={"id": config.request.id or stored.request.id})
    return config.model_copy(update={"request": request, "attacks": stored.attacks.model_copy(update=given)})


def _fitting_uniformity_judge(
    config: UnlearnConfig, judge: model_folder.Stored
) -> model_folder.Stored | None:
    judge_ = run_weights.read_uniformity_judge(config)
    if judge_ is None:
        return None
    network = run_weights.built(build_judge, judge_)
    try:
        weights.load_into(network.net, judge_.state, f"uniformity_judge.weights: {judge_.uri}")
    except weights.WeightsError as error:
        raise InputError(str(error)) from error
    if model_folder.class_count(judge_.config) != model_folder.class_count(judge.config):
        raise InputError(
            f"uniformity_judge.weights: knows {model_folder.class_count(judge_.config)} classes, the judge"
            f" that measures {model_folder.class_count(judge.config)}"
        )
    return judge_


def warning_of(prepared: Prepared) -> str | None:
    """What to say before the work begins of a judge whose predictions are worth little."""
    return judge_warning(prepared.judge.manifest.get("heldout_accuracy"))


def drawn_classes(config: UnlearnConfig, retained: list[int], near: list[int]) -> list[int]:
    """The retained classes that evaluations sample: as many as `evaluate.retain_classes` says.

    The exchange classes first, which the training moves most, then the nearest, then others by seed. Raises
    `InputError` where the run's checks are too few to take them in turn.
    """
    count = config.evaluate.retain_classes
    require_rotation(config, min(count or len(retained), len(retained)))
    if count is None or count >= len(retained):
        return retained
    exchange = {label for targets in config.request.exchange_classes.values() for label in targets}
    first = dict.fromkeys([label for label in retained if label in exchange] + near)
    others = sorted(
        (label for label in retained if label not in first),
        key=lambda label: seed_of(config.seed, "drawn", label),
    )
    return sorted([*first, *others][:count])


def _nearest(
    config: UnlearnConfig, lake: Lake, model: GenerativeModel, judge: Judge, retained: list[int]
) -> list[int]:
    """The neighbours of the forgotten classes, by the model's label table or by the judge's confusion on
    their own images."""
    request = config.request
    if request.nearest_by == "embedding":
        return nearest_classes(model, request.classes, retained, request.neighbours)
    if lake.manifest.kind != "image":
        raise InputError(
            f"request.nearest_by: got judge, but lake {lake.manifest.name!r} holds latents, which a judge"
            " cannot read; expected embedding"
        )
    images = lake.read(request.classes, "heldout")
    return confused_classes(
        judge, images if len(images) else lake.read(request.classes), retained, request.neighbours
    )


def settings_text(prepared: Prepared) -> str:
    return configuration.dump(prepared.config.model_copy(update={"run_id": prepared.run_id}))


def _require_same_settings(prepared: Prepared) -> None:
    """A run id that exists may only be continued with the settings it was started with,
    those of `HOW` aside."""
    uri = storage.join(prepared.run_uri, SETTINGS)
    if not storage.exists(uri):
        return
    # keys that came since have the value that runs without them had; the root may have been moved
    stored = parse_stored(
        UnlearnConfig,
        {**storage.read_yaml(uri), "storage": prepared.config.storage},
    )
    before, now = (
        _leaves(yaml.safe_load(text))
        for text in (configuration.dump(with_own_settings(stored)), settings_text(prepared))
    )
    keys = sorted(before.keys() | now.keys())
    different = [
        f"{key} {before.get(key)!r} -> {now.get(key)!r}"
        for key in keys
        if before.get(key) != now.get(key) and not any(key == how or key.startswith(f"{how}.") for how in HOW)
    ]
    if different:
        raise InputError(
            f"run_id {prepared.run_id} was started with other settings ({'; '.join(different)}); use them or"
            " another run_id"
        )


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            key: leaf
            for name, child in value.items()
            for key, leaf in _leaves(child, f"{prefix}{name}.").items()
        }
    return {prefix.rstrip("."): value}


def _require_same_classes(
    lake: Lake, base: model_folder.Stored, model: GenerativeModel, judge: model_folder.Stored
) -> None:
    labels = len(lake.manifest.classes)
    own = [("model.weights", model_folder.class_count(base.config))] if model.conditional else []
    for key, count in (*own, ("judge.weights", model_folder.class_count(judge.config))):
        if count != labels:
            raise InputError(
                f"{key}: knows {count} classes, but lake {lake.manifest.name!r} has {labels}; use weights"
                " made for this lake"
            )
    # (C, H, W)
    rows = (
        tuple(lake.manifest.shape)
        if lake.manifest.kind == "latent"
        else (lake.manifest.shape[2], *lake.manifest.shape[:2])
    )
    if rows != tuple(model.shape):
        raise InputError(
            f"model.weights: for rows of shape {model.shape}, but lake {lake.manifest.name!r} holds {rows}"
        )
