"""jobs/pretrain.py's work: a small DiT and its judge from a lake, on Ray Train workers."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.config import PretrainConfig
from pipeline.data.lake import Lake
from pipeline.data.parquet_shards import FLIP_MARK
from pipeline.data.selection import find_ids, read_ids
from pipeline.data.tombstones import open_lake
from pipeline.errors import InputError
from pipeline.runtime import metrics_log
from pipeline.runtime.progress import Progress
from pipeline.weights import model_folder

if TYPE_CHECKING:
    from pipeline.data.batch import Batch

METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"
MODEL = "model"  # what it is called beside the judges


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """`manifest` and `judge_manifest` hold the measured quality. `reused`: both were there already, made with
    the same settings."""

    model_uri: str
    judge_uri: str
    manifest: dict[str, Any]
    judge_manifest: dict[str, Any]
    reused: bool
    seconds: float


def descriptions(config: PretrainConfig, lake: Lake) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The config.json of the model, and of each judge, for the rows of `lake`."""
    from models.generative import describe, is_conditional
    from models.judge import mlp_description, small_cnn_description
    from models.resnet_judge import resnet_description
    from pipeline.evaluation.samplers import require_sampler_of

    nets: dict[str, Callable[..., dict[str, Any]]] = {
        "small_cnn": small_cnn_description,
        "mlp": lambda *, width, **rows: mlp_description(**rows),
        "resnet": resnet_description,
    }
    manifest = lake.manifest
    if manifest.kind != "image":
        raise InputError(
            f"lake {manifest.name!r} holds latents, expected images: pretrain.py trains small models on"
            " pixels"
        )
    height, width, channels = manifest.shape
    names = [item.name for item in manifest.classes]
    if [item.label for item in manifest.classes] != list(range(len(names))):
        raise InputError(f"lake {manifest.name!r} has labels with gaps, expected 0 to {len(names) - 1}")
    shape = (channels, height, width)
    try:
        evaluate = config.evaluate
        sampler = {"cfg_scale": evaluate.cfg_scale, "steps": evaluate.final_sampler_steps}
        sampler |= evaluate.sampler.changes if evaluate.sampler else {}
        own = {"sampler": sampler} if is_conditional(config.model.size) else {}
        model = describe(config.model.size, shape=shape, class_names=names, **own)
    except ValueError as error:
        raise InputError(str(error)) from error
    of_model = {name: value for name, value in model.items() if name != "sampler"}
    require_sampler_of(evaluate, "evaluate", of_model)
    try:
        return model, {
            name: nets[one.net](
                shape=shape,
                num_classes=len(names),
                class_names=names,
                width=one.width,
                **({"mirror": True} if one.mirror else {}),
            )
            for name, one in config.judges.items()
        }
    except ValueError as error:
        raise InputError(str(error)) from error


def model_uri_of(config: PretrainConfig) -> str:
    """Where the model goes: a retrained reference beside the one that saw everything, named samples by the
    digest of their ids."""
    uri = model_folder.model_uri(config.storage, config.model.size, config.lake)
    samples = ["samples", _samples_digest(config)[:8]] if config.without_samples else []
    parts = ["without", *map(str, sorted(config.without)), *samples]
    number = ["number", str(config.number)] if config.number else []
    return "-".join([uri, *parts, *number]) if config.is_reference else uri


def _judge_uri(config: PretrainConfig, name: str) -> str:
    of = {"judge": model_folder.judge_uri, "hat-judge": model_folder.uniformity_judge_uri}[name]
    return of(config.storage, config.lake)


def _samples_digest(config: PretrainConfig) -> str:
    assert config.without_samples is not None
    return storage.digest_of(sorted(set(read_ids(config.without_samples, "without_samples"))))


def seen_rows(config: PretrainConfig, lake: Lake) -> "Batch":
    """The rows to learn from: all but those of `without` and `without_samples`, mirrored copies included."""
    rows = lake.read([item.label for item in lake.manifest.classes if item.label not in config.without])
    if not config.without_samples:
        return rows
    gone = set(read_ids(config.without_samples, "without_samples"))
    return rows.take(
        [index for index, name in enumerate(rows.sample_id) if name.removesuffix(FLIP_MARK) not in gone]
    )


def check(config: PretrainConfig, lake: Lake) -> None:
    """Raise `InputError` for classes that cannot be left out, and for workers that would each learn other
    batch statistics."""
    from models.generative import is_conditional

    if not is_conditional(config.model.size) and config.train.most > 1:
        raise InputError(
            f"train.workers: got {config.train.most}, expected 1: {config.model.size} learns the statistics"
            " of whole batches (batch norm)"
        )
    if config.train.most > 1 and any(one.net == "resnet" for one in config.judges.values()):
        raise InputError(
            f"train.workers: got {config.train.most}, expected 1: the resnet judge learns the statistics of"
            " whole batches"
        )
    labels = [item.label for item in lake.manifest.classes]
    for label in config.without:
        if label not in labels:
            raise InputError(
                f"without: class {label} is not in lake {config.lake!r}, expected some of {labels[0]} to"
                f" {labels[-1]}"
            )
    if set(config.without) >= set(labels):
        raise InputError("without: got every class of the lake, expected at least one to learn from")
    if config.without_samples:
        ids = set(read_ids(config.without_samples, "without_samples"))
        known_ids = {
            name for _, names in find_ids(lake, lake.shards(), sorted(ids)).values() for name in names
        }
        if missing := sorted(ids - known_ids):
            raise InputError(
                f"without_samples: {len(missing)} of {len(ids)} ids are not in lake {config.lake!r}, the"
                f" first is {missing[0]!r}; expected ids of its training rows"
            )
        if not len(seen_rows(config, lake)):
            raise InputError(
                "without_samples: got every row of the lake, expected at least one to learn from"
            )
    if (
        config.is_reference
        and model_folder.manifest_of(model_folder.judge_uri(config.storage, config.lake)) is None
    ):
        raise InputError(
            "without: no judge is there yet, and one that never saw a class cannot judge it; run this job"
            " without `without` first"
        )


def pretrain(config: PretrainConfig) -> Pretrained:
    """Train both, or what is not there yet with the same settings, lake and seed. A judge does not depend on
    the model's settings."""
    started = time.perf_counter()
    config = config.model_copy(update={"seed": config.seed + config.number})
    lake = open_lake(config.storage, config.lake)
    check(config, lake)
    made_with = {  # decided without building anything, so that finding both there already takes no time
        "lake_digest": lake.digest,
        "size": config.model.size,
        "seed": config.seed,
        "label_dropout": config.label_dropout,
        "optim": config.optim.model_dump(),
        "judge": config.judge.model_dump(),
        "evaluate": config.evaluate.model_dump(
            include={"retain_samples", "cfg_scale", "final_sampler_steps", "sampler", "batch"}
        ),
        **_precision(config),
        **({"hat_judge": config.uniformity_judge.model_dump()} if config.uniformity_judge else {}),
        **_buried(lake),
        **({"without": sorted(config.without)} if config.without else {}),
        **({"without_samples": _samples_digest(config)} if config.without_samples else {}),
    }
    model_uri = model_uri_of(config)
    judge_uri = model_folder.judge_uri(config.storage, config.lake)
    judges_made_with = {name: _judge_made_with(config, lake, name) for name in config.judges}
    fresh = [
        name for name, facts in judges_made_with.items() if not _is_there(_judge_uri(config, name), facts)
    ]
    reused = not fresh and _is_there(model_uri, made_with)
    if not reused:
        both = descriptions(config, lake)
        storage.require_writable(config.storage)
        _train(config, lake, made_with, {name: judges_made_with[name] for name in fresh}, both, model_uri)
    manifest, judge_manifest = model_folder.manifest_of(model_uri), model_folder.manifest_of(judge_uri)
    assert manifest is not None and judge_manifest is not None
    return Pretrained(
        model_uri=model_uri,
        judge_uri=judge_uri,
        manifest=manifest,
        judge_manifest=judge_manifest,
        reused=reused,
        seconds=time.perf_counter() - started,
    )


def _judge_made_with(config: PretrainConfig, lake: Lake, name: str) -> dict[str, Any]:
    """All that this judge depends on."""
    return {
        "lake_digest": lake.digest,
        "seed": config.seed,
        "optim": config.judges[name].model_dump(),
        **_buried(lake),
        **_precision(config),
    }


def _buried(lake: Lake) -> dict[str, str]:
    """What was made of rows that were purged since is made again without them."""
    return {"buried": digest} if (digest := lake.buried_digest) else {}


def _precision(config: PretrainConfig) -> dict[str, str]:
    return {} if config.train.precision == "fp32" else {"precision": config.train.precision}


def _is_there(uri: str, made_with: dict[str, Any]) -> bool:
    manifest = model_folder.manifest_of(uri)
    return manifest is not None and manifest.get("made_with") == made_with


def _train(
    config: PretrainConfig,
    lake: Lake,
    made_with: dict[str, Any],
    fresh: dict[str, dict[str, Any]],
    both: tuple[dict[str, Any], dict[str, dict[str, Any]]],
    model_uri: str,
) -> None:
    from pipeline.runtime import cluster_ray
    from pipeline.training.launch_ray import launch
    from pipeline.training.pretrain_worker import run_worker

    cluster_ray.connect(training=True)
    cluster_ray.require_shared(config.storage)
    judge_too = ("", " and its judge", " and two judges")[len(fresh)]
    starts, first = {}, 0
    for name in fresh:
        starts[name], first = first, first + config.judges[name].max_steps
    progress = Progress(f"training {config.model.size}{judge_too}", config.optim.max_steps + first)

    def show(fresh: list[metrics_log.Record]) -> None:
        last = fresh[-1]
        step = last["step"] + starts.get(last["of"], first)
        progress.at(step, f"{last['of']} loss {last['loss']:.3f}")

    metrics_uri = storage.join(model_uri, METRICS)
    scratch, name = storage.join(config.storage, "models", ".train"), storage.digest_of(made_with)[:16]
    arguments = {
        "config": config.model_dump(mode="json"),
        "lake_uri": lake.uri,
        "made_with": made_with,
        "described": both,
        "model_uri": model_uri,
        "judge_uris": {name: _judge_uri(config, name) for name in ("judge", *config.judges)},
        "fresh": fresh,
        "metrics_uri": metrics_uri,
        "checkpoints_uri": storage.join(scratch, name, CHECKPOINTS),
    }
    with metrics_log.Follower(metrics_uri, show):
        launch(
            run_worker,
            arguments,
            config.train,
            storage_uri=scratch,
            name=name,
        )
    progress.close()
    # Ray Train's own notes and the checkpoints; the weights lie in their folders
    storage.remove(storage.join(scratch, name))
