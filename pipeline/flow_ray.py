"""The main job's flow on the driver: request -> partition -> unlearn -> gate -> result, report, registry."""

import json
import math
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import yaml

from models import weights
from models.generative import GenerativeModel, build, is_conditional
from models.judge import Judge, build_judge
from pipeline import config as configuration
from pipeline import storage
from pipeline.config import UnlearnConfig
from pipeline.data.lake import Lake, lake_uri, read_lake
from pipeline.data.partition import read_sample_ids, selections
from pipeline.errors import InputError
from pipeline.evaluation import prove_ray
from pipeline.evaluation.gate import judge_gate, judge_warning
from pipeline.evaluation.judging import tried
from pipeline.evaluation.neighbours import confused_classes, nearest_classes
from pipeline.request import require_fit, resolve
from pipeline.runtime import precision, records
from pipeline.runtime.code_version import code_version
from pipeline.runtime.progress import Progress
from pipeline.runtime.redact import redacted
from pipeline.seeding import seed_of
from pipeline.sweep.autopilot import AUTO, contestants, settled_on
from pipeline.tracking.mlflow_tracking import tracking_uri
from pipeline.unlearning.methods import METHODS
from pipeline.unlearning.trainable import label_parameter, select
from pipeline.weights import bases, exporting, model_store, spaces

if TYPE_CHECKING:
    from pipeline.memory.plan import Choice
    from pipeline.tracking.mlflow_tracking import Tracker

REQUEST, SETTINGS, RESULT, REPORT = "request.yaml", "config.yaml", "result.json", "report.html"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A main job that was checked: everything it reads is there and fits together, nothing is written yet."""

    config: UnlearnConfig
    run_id: str
    run_uri: str
    lake: Lake
    base: model_store.Stored
    judge: model_store.Stored
    model: GenerativeModel
    trainable: int
    subject: dict[str, Any]
    choice: "Choice | None" = None  # how the step will be made on the GPUs that train.memory_gib speaks of
    features: Mapping[str, model_store.Stored] = field(default_factory=dict)  # feature spaces beside the judge's

    @property
    def sources(self) -> dict[str, Any]:
        """What `train_ray.train` reads beside the partition."""
        return {"lake_uri": self.lake.uri, "model_uri": self.base.uri, "judge_uri": self.judge.uri, "subject": self.subject}


def check(config: UnlearnConfig) -> Prepared:
    """Raise `InputError` for anything that would stop the job later."""
    if config.method.name not in (*METHODS, AUTO):
        raise InputError(f"method.name: got {config.method.name!r}, expected one of {', '.join((*METHODS, AUTO))}")
    if config.method.name == AUTO:
        contestants(config)
    lake = read_lake(lake_uri(config.storage, config.lake))
    config = resolve(config, {item.label: item.name for item in lake.manifest.classes}, conditional=is_conditional(config.model.size))
    base, judge, features = bases.read_base(config, lake), bases.read_judge(config), spaces.read_spaces(config.features)
    model, verdict = build(base.config, batch_norm=config.model.batch_norm), build_judge(judge.config)
    try:
        weights.load_into(model.net, base.state, f"model.weights: {base.uri}")
        weights.load_into(verdict.net, judge.state, f"judge.weights: {judge.uri}")
    except weights.WeightsError as error:
        raise InputError(str(error)) from error
    precision.require(config, base.config)
    _require_same_classes(lake, model, judge)
    bases.require_same_names(lake, judge)
    require_fit(config, model)
    judge = tried(judge, verdict, lake)
    try:
        named = select(model, config.trainable)
    except ValueError as error:
        raise InputError(str(error)) from error
    moves = "method.start: exchange" if config.method.start == "exchange" else "method.push" if config.method.push else None
    if moves and label_parameter(model, named) is None:
        raise InputError(f"{moves} moves rows of the label table, which trainable {config.trainable} leaves out")
    tracking_uri(config.tracking, config.storage)
    prove_ray.check(config)
    classes = config.request.forgotten_classes
    retained = [item.label for item in lake.manifest.classes if item.label not in classes]
    near = _nearest(config, lake, model, verdict, retained) if classes else []
    run_id = config.run_id or f"{config.request.id}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
    prepared = Prepared(
        config=config,
        run_id=run_id,
        run_uri=storage.join(config.storage, "runs", run_id),
        lake=lake,
        base=base,
        judge=judge,
        model=model,
        trainable=sum(p.numel() for p in named.values()),
        subject={"retained": _drawn(config, retained, near), "neighbours": near},
        choice=bases.choose(config, base),
        features=features,
    )
    _require_same_settings(prepared)
    if not storage.exists(storage.join(prepared.run_uri, SETTINGS)):  # a run that was begun was served
        selections(config, lake, read_sample_ids(config.request), near)
    return prepared


def _drawn(config: UnlearnConfig, retained: list[int], near: list[int]) -> list[int]:
    """The retained classes that evaluations draw: as many as `evaluate.retain_classes` says, the nearest among them."""
    count = config.evaluate.retain_classes
    if count is None or count >= len(retained):
        return retained
    order = sorted((label for label in retained if label not in near), key=lambda label: seed_of(config.seed, "drawn", label))
    return sorted([*near, *order][:count])


def warning_of(prepared: Prepared) -> str | None:
    """What to say before the work begins of a judge whose verdicts are worth little."""
    return judge_warning(prepared.judge.manifest.get("heldout_accuracy"))


def _nearest(config: UnlearnConfig, lake: Lake, model: GenerativeModel, judge: Judge, retained: list[int]) -> list[int]:
    """The neighbours of the forgotten classes, by the model's label table or by the judge's confusion on their own images."""
    request = config.request
    if request.nearest_by == "embedding":
        return nearest_classes(model, request.forgotten_classes, retained, request.neighbours)
    if lake.manifest.kind != "image":
        raise InputError(
            f"request.nearest_by: got judge, but lake {lake.manifest.name!r} holds latents, which a judge cannot read; expected embedding"
        )
    shown = lake.read(request.forgotten_classes, "heldout")
    return confused_classes(judge, shown if len(shown) else lake.read(request.forgotten_classes), retained, request.neighbours)


def run(prepared: Prepared) -> dict[str, Any]:
    """Do it, or what is left of it: a run id that is finished returns its result, an interrupted one goes on."""
    from pipeline.data.partition_ray import build_partition
    from pipeline.runtime import cluster_ray
    from pipeline.sweep import autopilot_ray
    from pipeline.tracking.mlflow_tracking import preload
    from pipeline.training import train_ray

    started = time.perf_counter()
    config, run_uri = prepared.config, prepared.run_uri
    if storage.exists(storage.join(run_uri, RESULT)):
        return storage.read_json(storage.join(run_uri, RESULT))
    storage.require_writable(config.storage)
    preload()
    prepared = replace(
        prepared,
        base=model_store.kept(prepared.base, config.storage),
        judge=model_store.kept(prepared.judge, config.storage),
        subject=prepared.subject | {"features": spaces.kept(prepared.features, config.storage)},
    )
    cluster_ray.connect(max(os.cpu_count() or 1, math.ceil(config.train.most * config.train.cpus_per_worker) + 1))  # one for Ray Data
    cluster_ray.require_shared(config.storage)
    progress = Progress(f"unlearning by {config.method.name}", config.optim.max_steps)
    with begin(prepared) as tracker:
        partition = build_partition(config, prepared.lake, prepared.subject["neighbours"])
        print(f"  partition {partition.digest[:12]}{' (made before)' if partition.reused else ''}; starting the workers", flush=True)

        extra = {}
        if config.method.name == AUTO:
            extra["contest"] = autopilot_ray.contest(prepared, partition)
            config = settled_on(config, extra["contest"])
            prepared = replace(prepared, config=config)

        def watch(fresh: list[records.Record]) -> None:
            show(progress, fresh)
            tracker.log_records(fresh)

        metrics_uri = storage.join(run_uri, train_ray.METRICS)
        outcome_uri = storage.join(run_uri, train_ray.OUTCOME)
        with records.Follower(metrics_uri, watch):
            if storage.exists(outcome_uri):
                outcome = storage.read_json(outcome_uri)
            else:
                known_uri, known = measured_before(prepared, partition.digest)
                outcome = train_ray.train(
                    bases.fitted(config, prepared.choice), partition_uri=partition.uri, run_uri=run_uri, before=known, **prepared.sources
                )
                if known is None and "failed" not in outcome:
                    first = next(r for r in records.read(metrics_uri) if r["kind"] == "evaluation" and r["step"] == 0)
                    storage.write_json(known_uri, {"result": outcome["before"], "record": first})
            if "failed" in outcome:
                raise RuntimeError(outcome["failed"])
        progress.close()
        return finish(prepared, tracker, outcome, partition.digest, started, extra)


def begin(prepared: Prepared, tags: Mapping[str, str] | None = None) -> "Tracker":
    """Leave the run's settings in its folder, before anything else, and return its tracker, to be entered."""
    from pipeline.tracking.mlflow_tracking import Tracker, flatten

    config, run_uri = prepared.config, prepared.run_uri
    if not storage.exists(storage.join(run_uri, SETTINGS)):
        storage.write_text(storage.join(run_uri, REQUEST), configuration.dump(config.request))
        storage.write_text(storage.join(run_uri, SETTINGS), _settings(prepared))
    return Tracker(
        tracking=config.tracking,
        storage_root=config.storage,
        run_id=prepared.run_id,
        tags={
            "request_id": str(config.request.id),
            "method": config.method.name,
            "base_digest": prepared.base.digest,
            "lake_digest": prepared.lake.digest,
            "code_version": code_version() or "unknown",
            **(tags or {}),
        },
        system=True,
        params=flatten(config.model_dump(mode="json", exclude={"storage", "run_id", "tracking"})),
    )


def finish(
    prepared: Prepared,
    tracker: "Tracker",
    outcome: dict[str, Any],
    partition_digest: str,
    started: float,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """From a run's outcome, weights, records and grids under its folder to a registered candidate, the report and result.json.

    `started` is `time.perf_counter()` of the job's beginning; `extra` joins the result. Returns the result.
    """
    from pipeline.tracking.registry import register
    from pipeline.training import train_ray

    run_uri = prepared.run_uri
    trained = weights.from_bytes(storage.read_bytes(storage.join(run_uri, train_ray.TRAINED)), train_ray.TRAINED)
    about = {"base_digest": prepared.base.digest, "run_id": prepared.run_id}
    digest = model_store.write(
        storage.join(run_uri, "model"), prepared.base.config, {**prepared.base.state, **trained}, about, prepared.base.autoencoder
    )
    proof = prove_ray.prove(
        prepared.config,
        lake=prepared.lake,
        base=prepared.base,
        judge=prepared.judge,
        state={**prepared.base.state, **trained},
        run_uri=run_uri,
        spaces=prepared.features,
    )
    result = _result(prepared, outcome, digest, partition_digest, time.perf_counter() - started) | proof | dict(extra or {})
    height, width, channels = _image_shape(prepared)
    folder = storage.join(run_uri, "model")
    if prepared.config.tracking.artifact == "delta":
        folder = storage.join(run_uri, "delta")
        model_store.write_delta(folder, prepared.base, trained, digest, about)
    version = register(tracker, folder=folder, image_shape=(height, width, channels), result=result)
    result["model"] |= {"version": version, "alias": "candidate"}
    if prepared.config.tracking.pipeline:
        exporting.export_pipeline(model_store.read(storage.join(run_uri, "model"), "model"), storage.join(run_uri, "pipeline"))
    result["timing"]["total_seconds"] = time.perf_counter() - started
    _publish(prepared, result, records.read(storage.join(run_uri, train_ray.METRICS)), tracker)
    return result


def measured_before(prepared: Prepared, partition_digest: str) -> tuple[str, dict[str, Any] | None]:
    """Where the base model's measures lie that this run would take, and those measures when an earlier run took them.

    They depend on the two sets of weights, the partition, the seed, the evaluation's settings and the code.
    """
    config = prepared.config
    key = [
        prepared.base.digest,
        prepared.judge.digest,
        partition_digest,
        config.seed,
        config.evaluate.model_dump(mode="json", exclude={"battery", "measures", "gold"}),
        {name: stored.digest for name, stored in prepared.features.items()},
        code_version(),
    ]
    request = config.request.model_dump(mode="json", include={"classes", "exchange", "sample_ids", "neighbours"})
    uri = storage.join(config.storage, "evaluations", f"{storage.digest_of([key, request])[:32]}.json")
    return uri, storage.read_json(uri) if storage.exists(uri) else None


def show(progress: Progress, fresh: list[records.Record]) -> None:
    """Fresh records on the terminal: the bar follows the steps, every check is a line."""
    for record in fresh:
        if record["kind"] == "evaluation":
            name = "forget_fraction" if record["forget_fraction"] is not None else "membership_auc"
            kept = ""
            if record["retain_accuracy/mean"] is not None:
                kept = f"  retain_accuracy {record['retain_accuracy/mean']:.3f} (worst class {record['retain_accuracy/min']:.3f})"
            interval = f"[{record[f'{name}/low']:.3f}, {record[f'{name}/high']:.3f}]"
            progress.line(f"  step {record['step']:>3}  {name} {record[name]:.3f} {interval}{kept}")
        elif record["step"] > 0:
            progress.at(record["step"], f"{record['phase']} loss {record.get('loss/keep', record.get('loss/retain', 0)):.4f}")


def _publish(prepared: Prepared, result: dict[str, Any], recorded: list[records.Record], tracker: "Tracker") -> None:
    """Sample grids, report and, last, result.json: under the run and as MLflow artifacts."""
    from pipeline.tracking.pages import pages, read_grids

    names = [item.name for item in prepared.lake.manifest.classes]
    files = pages(result, recorded, read_grids(prepared.run_uri), configuration.dump(prepared.config), class_names=names)
    files[RESULT] = (json.dumps(result, indent=2, allow_nan=False) + "\n").encode()
    for name, data in files.items():
        storage.write_bytes(storage.join(prepared.run_uri, name), data)
    asked = {name: storage.read_bytes(storage.join(prepared.run_uri, name)) for name in (REQUEST, SETTINGS)}
    tracker.log_artifacts(files | asked)


def _settings(prepared: Prepared) -> str:
    return configuration.dump(prepared.config.model_copy(update={"run_id": prepared.run_id}))


def _require_same_settings(prepared: Prepared) -> None:
    """A run id that exists may only be continued with the settings it was started with."""
    uri = storage.join(prepared.run_uri, SETTINGS)
    if not storage.exists(uri):
        return
    before, now = _leaves(yaml.safe_load(storage.read_bytes(uri))), _leaves(yaml.safe_load(_settings(prepared)))
    keys = sorted(before.keys() | now.keys())
    different = [f"{key} {before.get(key)!r} -> {now.get(key)!r}" for key in keys if before.get(key) != now.get(key)]
    if different:
        more = f" and {len(different) - 5} more" if len(different) > 5 else ""
        raise InputError(
            f"run_id {prepared.run_id} was started with other settings ({'; '.join(different[:5])}{more}); use them or another run_id"
        )


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {key: leaf for name, child in value.items() for key, leaf in _leaves(child, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): value}


def _result(prepared: Prepared, outcome: dict[str, Any], digest: str, partition_digest: str, seconds: float) -> dict[str, Any]:
    config, timing = prepared.config, outcome["timing"]
    return {
        "run_id": prepared.run_id,
        "request": redacted(config.request.model_dump(mode="json")),
        "method": config.method.name,
        "method_config": config.method.model_dump(mode="json")
        | {
            "trainable": config.trainable,
            "trainable_parameters": prepared.trainable,
            "hvp": bases.fitted(config, prepared.choice).method.hvp,
        },
        "model": {"name": config.tracking.model_name, "version": None, "alias": None},
        "base_digest": prepared.base.digest,
        "features": spaces.facts(prepared.features, prepared.judge),
        "precision": precision.facts(config),
        "weights_digest": digest,
        "lake_digest": prepared.lake.digest,
        "partition_digest": partition_digest,
        "code_version": code_version(),
        "seed": config.seed,
        "world_size": outcome["world_size"],
        "steps": outcome["steps"],
        "kept_step": outcome["kept_step"],
        "stopped": outcome["stopped"],
        "missing_checks": outcome["missing_checks"],
        "first_crossing_step": outcome["first_crossing_step"],
        "settled_step": outcome["settled_step"],
        "before": outcome["before"],
        "after": outcome["after"],
        "gate": judge_gate(
            config.gate,
            outcome,
            prepared.judge.manifest.get("heldout_accuracy"),
            config.request.forgotten_classes,
            trained_against=config.method.hat_weight > 0,
        ),
        "timing": {
            "seconds_to_first_batch": timing["seconds_to_first_batch"],
            "seconds_per_step": timing["seconds_per_step"],
            "seconds_to_forget": timing["seconds_to_forget"],
            "gpu_seconds": timing["step_seconds"] * outcome["world_size"] if config.train.gpus_per_worker else None,
            "total_seconds": seconds,
        },
    }


def _image_shape(prepared: Prepared) -> tuple[int, int, int]:
    return bases.image_shape(prepared.base, prepared.model.shape)


def _require_same_classes(lake: Lake, model: GenerativeModel, judge: model_store.Stored) -> None:
    labels = len(lake.manifest.classes)
    own = [("model.weights", model.num_classes)] if model.conditional else []
    for what, count in (*own, ("judge.weights", judge.config["num_classes"])):
        if count != labels:
            raise InputError(f"{what}: knows {count} classes, but lake {lake.manifest.name!r} has {labels}; use weights made for this lake")
    rows = tuple(lake.manifest.shape) if lake.manifest.kind == "latent" else (lake.manifest.shape[2], *lake.manifest.shape[:2])  # (C, H, W)
    if rows != tuple(model.shape):
        raise InputError(f"model.weights: for rows of shape {model.shape}, but lake {lake.manifest.name!r} holds {rows}")
