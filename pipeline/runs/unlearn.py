"""The main job on the driver: check -> partition -> train -> evaluate -> gate -> register."""

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from models import weights
from pipeline import config as configuration
from pipeline import lease, storage
from pipeline.errors import InputError
from pipeline.evaluation import stored_result
from pipeline.runs import final_evaluation, run_weights
from pipeline.runs.preflight import REQUEST, SETTINGS, Prepared, settings_text
from pipeline.runs.result import RESULT, base_metrics_of, keep_base_metrics, publish, result_of
from pipeline.runtime import metrics_log
from pipeline.runtime.code_version import code_version
from pipeline.runtime.progress import Progress
from pipeline.tracking import export
from pipeline.training.run_folder import METRICS, OUTCOME, TRAINED
from pipeline.weights import decoder, feature_extractors, model_folder

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.tracking.mlflow_runs import Tracker


log = logging.getLogger(__name__)
LEASE_S = 60.0  # for which a run is held by a process that does not say that it still works


def run(prepared: Prepared) -> dict[str, Any]:
    """Do it, or what is left of it: a run id that is finished returns its result, an interrupted one goes
    on."""
    started = time.perf_counter()
    config, run_uri = prepared.config, prepared.run_uri

    # Check: is it done already, can everything be reached.
    if result := finished(run_uri):
        return result
    storage.require_writable(config.storage)
    with lease_of(prepared) as own:
        if result := finished(run_uri):  # another process has just finished it
            return result
        return _run(prepared, own, started)


def lease_of(prepared: Prepared) -> AbstractContextManager[lease.Lease]:
    """Context: this process alone does the run, with Ray or without."""
    uri = storage.join(prepared.config.storage, "leases", prepared.run_id)
    return lease.held(uri, lasts_s=LEASE_S, outlive=True)


def finished(run_uri: str) -> dict[str, Any] | None:
    """The result of a run that is done, None of any other. One that was cut off while it was written counts
    as not written: the run ends once more from its outcome."""
    uri = storage.join(run_uri, RESULT)
    if not storage.exists(uri):
        return None
    try:
        return stored_result.read(uri)
    except InputError as error:
        log.warning("%s", error)
        return None


def _run(prepared: Prepared, own: lease.Lease, started: float) -> dict[str, Any]:
    """The run itself, which no other process does meanwhile."""
    from pipeline.data.partition_ray import build_partition
    from pipeline.runtime import cluster_ray
    from pipeline.tracking.compat import preload
    from pipeline.tracking.known_versions import require_log_known
    from pipeline.tracking.run_page import DataSet

    config = prepared.config
    preload()
    prepared = with_own_weights(prepared)
    cluster_ray.connect(cluster_ray.cpus_for(config.train), training=True)
    cluster_ray.require_shared(config.storage)
    require_log_known(config.tracking, config.storage)  # by now MLflow is imported

    with begin(prepared) as tracker:
        # Partition: the rows of the run, cut into lanes.
        partition = build_partition(config, prepared.lake, prepared.subject["neighbours"], prepared.stand_ins)
        tracker.log_datasets([DataSet(name="partition", digest=partition.digest, uri=partition.uri)])
        origin = " (made before)" if partition.reused else ""
        print(f"  partition {partition.digest[:12]}{origin}; starting the workers", flush=True)

        # Train and evaluate, on the workers.
        outcome = _train(prepared, partition.uri, partition.digest, tracker)
        if "failed" in outcome:
            raise RuntimeError(outcome["failed"])

        # Final evaluation, gate, register.
        own.require()
        return finish(prepared, tracker, outcome, partition.digest, started)


def with_own_weights(prepared: Prepared) -> Prepared:
    """`prepared` with published weights written into folders of ours, which workers can read."""
    root = prepared.config.storage
    return replace(
        prepared,
        base=model_folder.kept(prepared.base, root),
        judge=model_folder.kept(prepared.judge, root),
        uniformity_judge=prepared.uniformity_judge and model_folder.kept(prepared.uniformity_judge, root),
        subject=prepared.subject | {"features": feature_extractors.kept(prepared.features, root)},
    )


def _train(
    prepared: Prepared, partition_uri: str, partition_digest: str, tracker: "Tracker"
) -> dict[str, Any]:
    """The outcome of the loop on Ray Train's workers, its records shown and logged as they come; one that is
    in the run's folder already is read."""
    from pipeline.training import worker

    config, run_uri = prepared.config, prepared.run_uri
    metrics_uri, outcome_uri = (storage.join(run_uri, name) for name in (METRICS, OUTCOME))
    progress = Progress(f"unlearning by {config.method.name}", config.optim.max_steps)

    def watch(records: list[metrics_log.Record]) -> None:
        show(progress, records)
        tracker.log_records(records)

    with metrics_log.Follower(metrics_uri, watch):
        if storage.exists(outcome_uri):
            outcome = stored_result.read(outcome_uri)
        else:
            before_uri, before = base_metrics_of(prepared, partition_digest)
            outcome = worker.train(
                run_weights.fitted(config, prepared.choice),
                partition_uri=partition_uri,
                run_uri=run_uri,
                before=before,
                **prepared.sources,
            )
            if before is None and "failed" not in outcome:
                keep_base_metrics(before_uri, outcome, run_uri)
    progress.close()
    return outcome


def leave_model(prepared: Prepared) -> "tuple[dict[str, Tensor], str]":
    """Write the whole model with the trained weights under the run; returns those weights and the whole's
    digest."""
    run_uri, base = prepared.run_uri, prepared.base
    trained = weights.from_bytes(storage.read_bytes(storage.join(run_uri, TRAINED)), TRAINED)
    folder, state = storage.join(run_uri, "model"), {**base.state, **trained}
    return trained, model_folder.write(folder, base.config, state, _about(prepared), base.autoencoder)


def _about(prepared: Prepared) -> dict[str, Any]:
    return {"base_digest": prepared.base.digest, "run_id": prepared.run_id}


def begin(prepared: Prepared, tags: Mapping[str, str] | None = None) -> "Tracker":
    """Leave the run's settings in its folder, before anything else, and return its tracker, to be entered."""
    from pipeline.tracking.mlflow_runs import Tracker, flatten
    from pipeline.tracking.run_page import DataSet

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
        description=_description(prepared),
        datasets=[
            DataSet(name=prepared.lake.manifest.name, digest=prepared.lake.digest, uri=prepared.lake.uri)
        ],
        params=flatten(config.model_dump(mode="json", exclude={"storage", "run_id", "tracking"})),
    )


def _description(prepared: Prepared) -> str:
    """A paragraph for MLflow's page of the run."""
    config, request = prepared.config, prepared.config.request
    named = f"classes {', '.join(map(str, request.classes))}" if request.classes else ""
    scope = " and ".join(filter(None, [named, "the named samples" if request.sample_ids else ""]))
    exchange = "; ".join(
        f"label {label} samples {' or '.join(map(str, targets))} from now on"
        for label, targets in request.exchange_classes.items()
    )
    start = prepared.base_version.line if prepared.base_version else f"weights {prepared.base.digest[:12]}"
    return (
        f"Request {request.id}: {config.model.size} forgets {scope} of lake {prepared.lake.manifest.name}"
        + (f"; {exchange}" if exchange else "")
        + f". By {config.method.name}, which trains {config.trainable} ({prepared.trainable:,} parameters),"
        f" from {start}." + (f" Reason: {request.reason}." if request.reason else "")
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
    from pipeline.tracking.registry import digests_of, register

    run_uri = prepared.run_uri
    config, base = prepared.config, prepared.base

    # The weights: the base's with the trained ones in their place.
    trained, digest = leave_model(prepared)
    folder, state = storage.join(run_uri, "model"), {**base.state, **trained}

    # Evaluate them once more, on fresh noise; the gate decides.
    proof = final_evaluation.prove(
        config,
        lake=prepared.lake,
        base=base,
        judge=prepared.judge,
        state=state,
        run_uri=run_uri,
        spaces=prepared.features,
    )
    seconds = time.perf_counter() - started
    result = result_of(prepared, outcome, digest, partition_digest, seconds, proof["attack_suite"])
    result |= proof | dict(extra or {})

    # Register the candidate.
    artifact = folder
    if config.tracking.artifact == "delta":
        artifact = storage.join(run_uri, "delta")
        model_folder.write_delta(artifact, base, trained, digest, _about(prepared))
    image_shape = decoder.image_shape(base, prepared.model.shape)
    version = register(tracker, folder=artifact, image_shape=image_shape, result=result)
    digests = digests_of(tracker.client, config.tracking.model_name, version)
    result["model"] |= {"version": version, "alias": "candidate", **digests}
    if config.tracking.pipeline:
        export.export_pipeline(model_folder.read(folder, "model"), storage.join(run_uri, "pipeline"))

    # Publish: grids, report and, last, the result.
    result["timing"]["total_seconds"] = time.perf_counter() - started
    publish(prepared, result, metrics_log.read(storage.join(run_uri, METRICS)), tracker)
    return result


def show(progress: Progress, records: list[metrics_log.Record]) -> None:
    """New records on the terminal: the bar follows the steps, every check is a line."""
    for record in records:
        if record["kind"] == "evaluation":
            name = "forget_fraction" if record["forget_fraction"] is not None else "membership_auc"
            line = f"  step {record['step']:>3}  {name} {record[name]:.3f}"
            line += f" [{record[f'{name}/low']:.3f}, {record[f'{name}/high']:.3f}]"
            prefix = "forget_fraction/class_"
            earlier = {key: value for key, value in record.items() if key.startswith(prefix)}
            if earlier:
                label = max(earlier, key=lambda key: earlier[key])
                line += f"  earlier at most {earlier[label]:.3f} (class {label.removeprefix(prefix)})"
            mean, worst = record["retain_accuracy/mean"], record["retain_accuracy/min"]
            progress.line(
                line if mean is None else f"{line}  retain_accuracy {mean:.3f} (worst class {worst:.3f})"
            )
            for key in (key for key in record if key.startswith("lacks/")):
                label = key.rpartition("_")[2]
                progress.line(
                    f"  warning: the base samples class {label} right {record[key]:.0%} of the time, and it"
                    " would be retained; if it was forgotten, name it in request.forgotten_earlier"
                )
        elif record["step"] > 0:
            loss = record.get("loss/keep", record.get("loss/retain", 0))
            progress.at(record["step"], f"{record['phase']} loss {loss:.4f}")
