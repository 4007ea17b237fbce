"""The main job's flow on the driver: request -> partition -> unlearn -> gate -> result, report, registry."""

import math
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from models import weights
from pipeline import config as configuration
from pipeline import storage
from pipeline.runs import final_evaluation, run_weights
from pipeline.runs.preflight import REQUEST, SETTINGS, Prepared, settings_text
from pipeline.runs.result import RESULT, measured_before, publish, result_of
from pipeline.runtime import metrics_log
from pipeline.runtime.code_version import code_version
from pipeline.runtime.progress import Progress
from pipeline.tracking import export
from pipeline.weights import decoder, feature_extractors, model_folder

if TYPE_CHECKING:
    from pipeline.tracking.mlflow_runs import Tracker


def run(prepared: Prepared) -> dict[str, Any]:
    """Do it, or what is left of it: a run id that is finished returns its result, an
    interrupted one goes on."""
    from pipeline.data.partition_ray import build_partition
    from pipeline.runtime import cluster_ray
    from pipeline.tracking.compat import preload
    from pipeline.training import worker

    started = time.perf_counter()
    config, run_uri = prepared.config, prepared.run_uri
    if storage.exists(storage.join(run_uri, RESULT)):
        return storage.read_json(storage.join(run_uri, RESULT))
    storage.require_writable(config.storage)
    preload()
    prepared = replace(
        prepared,
        base=model_folder.kept(prepared.base, config.storage),
        judge=model_folder.kept(prepared.judge, config.storage),
        hat_judge=prepared.hat_judge and model_folder.kept(prepared.hat_judge, config.storage),
        subject=prepared.subject | {"features": feature_extractors.kept(prepared.features, config.storage)},
    )
    # one for Ray Data
    cluster_ray.connect(
        max(os.cpu_count() or 1, math.ceil(config.train.most * config.train.cpus_per_worker) + 1)
    )
    cluster_ray.require_shared(config.storage)
    progress = Progress(f"unlearning by {config.method.name}", config.optim.max_steps)
    with begin(prepared) as tracker:
        partition = build_partition(config, prepared.lake, prepared.subject["neighbours"])
        print(
            f"  partition {partition.digest[:12]}{' (made before)' if partition.reused else ''}; starting the"
            " workers",
            flush=True,
        )

        def watch(fresh: list[metrics_log.Record]) -> None:
            show(progress, fresh)
            tracker.log_records(fresh)

        metrics_uri = storage.join(run_uri, worker.METRICS)
        outcome_uri = storage.join(run_uri, worker.OUTCOME)
        with metrics_log.Follower(metrics_uri, watch):
            if storage.exists(outcome_uri):
                outcome = storage.read_json(outcome_uri)
            else:
                known_uri, known = measured_before(prepared, partition.digest)
                outcome = worker.train(
                    run_weights.fitted(config, prepared.choice),
                    partition_uri=partition.uri,
                    run_uri=run_uri,
                    before=known,
                    **prepared.sources,
                )
                if known is None and "failed" not in outcome:
                    first = next(
                        r
                        for r in metrics_log.read(metrics_uri)
                        if r["kind"] == "evaluation" and r["step"] == 0
                    )
                    storage.write_json(known_uri, {"result": outcome["before"], "record": first})
            if "failed" in outcome:
                raise RuntimeError(outcome["failed"])
        progress.close()
        return finish(prepared, tracker, outcome, partition.digest, started)


def begin(prepared: Prepared, tags: Mapping[str, str] | None = None) -> "Tracker":
    """Leave the run's settings in its folder, before anything else, and return its tracker, to be entered."""
    from pipeline.tracking.mlflow_runs import Tracker, flatten

    config, run_uri = prepared.config, prepared.run_uri
    if not storage.exists(storage.join(run_uri, SETTINGS)):
        storage.write_text(storage.join(run_uri, REQUEST), configuration.dump(config.request))
        storage.write_text(storage.join(run_uri, SETTINGS), settings_text(prepared))
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
    """From a run's outcome, weights, records and grids under its folder to a registered candidate, the report
    and result.json.

    `started` is `time.perf_counter()` of the job's beginning; `extra` joins the result. Returns the result.
    """
    from pipeline.tracking.registry import register
    from pipeline.training import worker

    run_uri = prepared.run_uri
    trained = weights.from_bytes(storage.read_bytes(storage.join(run_uri, worker.TRAINED)), worker.TRAINED)
    about = {"base_digest": prepared.base.digest, "run_id": prepared.run_id}
    digest = model_folder.write(
        storage.join(run_uri, "model"),
        prepared.base.config,
        {**prepared.base.state, **trained},
        about,
        prepared.base.autoencoder,
    )
    proof = final_evaluation.prove(
        prepared.config,
        lake=prepared.lake,
        base=prepared.base,
        judge=prepared.judge,
        state={**prepared.base.state, **trained},
        run_uri=run_uri,
        spaces=prepared.features,
    )
    result = (
        result_of(prepared, outcome, digest, partition_digest, time.perf_counter() - started)
        | proof
        | dict(extra or {})
    )
    height, width, channels = decoder.image_shape(prepared.base, prepared.model.shape)
    folder = storage.join(run_uri, "model")
    if prepared.config.tracking.artifact == "delta":
        folder = storage.join(run_uri, "delta")
        model_folder.write_delta(folder, prepared.base, trained, digest, about)
    version = register(tracker, folder=folder, image_shape=(height, width, channels), result=result)
    result["model"] |= {"version": version, "alias": "candidate"}
    if prepared.config.tracking.pipeline:
        export.export_pipeline(
            model_folder.read(storage.join(run_uri, "model"), "model"), storage.join(run_uri, "pipeline")
        )
    result["timing"]["total_seconds"] = time.perf_counter() - started
    publish(prepared, result, metrics_log.read(storage.join(run_uri, worker.METRICS)), tracker)
    return result


def show(progress: Progress, fresh: list[metrics_log.Record]) -> None:
    """Fresh records on the terminal: the bar follows the steps, every check is a line."""
    for record in fresh:
        if record["kind"] == "evaluation":
            name = "forget_fraction" if record["forget_fraction"] is not None else "membership_auc"
            kept = ""
            if record["retain_accuracy/mean"] is not None:
                kept = (
                    f"  retain_accuracy {record['retain_accuracy/mean']:.3f} (worst class"
                    f" {record['retain_accuracy/min']:.3f})"
                )
            interval = f"[{record[f'{name}/low']:.3f}, {record[f'{name}/high']:.3f}]"
            progress.line(f"  step {record['step']:>3}  {name} {record[name]:.3f} {interval}{kept}")
        elif record["step"] > 0:
            progress.at(
                record["step"],
                f"{record['phase']} loss {record.get('loss/keep', record.get('loss/retain', 0)):.4f}",
            )
