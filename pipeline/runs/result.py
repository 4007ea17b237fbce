"""What a run leaves behind: its result, report and grids, and the metrics of its base for
the runs after it."""

import json
from typing import TYPE_CHECKING, Any

from pipeline import config as configuration
from pipeline import storage
from pipeline.data.partition import find_partition
from pipeline.evaluation.answers import answered
from pipeline.evaluation.attacks.suite import by_name, record_of
from pipeline.evaluation.gate import judge_gate
from pipeline.redaction import redacted
from pipeline.reports.evaluation_sections import attack_suite_sentence
from pipeline.runs import run_weights
from pipeline.runs.preflight import REQUEST, SETTINGS, Prepared
from pipeline.runtime import metrics_log, precision
from pipeline.runtime.code_version import code_version
from pipeline.training.run_folder import METRICS
from pipeline.weights import feature_extractors

if TYPE_CHECKING:
    from pipeline.tracking.mlflow_runs import Tracker

RESULT, REPORT = "result.json", "report.html"


def base_metrics_of(prepared: Prepared, partition_digest: str) -> tuple[str, dict[str, Any] | None]:
    """Where the base model's metrics lie that this run would take, and those metrics when an earlier run
    took them.

    They depend on the weights, the decoder, the partition, the seed, the evaluation's settings, the
    arithmetic and the code.
    """
    config = prepared.config
    key = [
        prepared.base.digest,
        prepared.judge.digest,
        config.encoder.model_dump(mode="json"),
        config.train.model_dump(mode="json", include={"tf32", "compile"}),
        partition_digest,
        config.seed,
        config.evaluate.model_dump(
            mode="json", exclude={"attack_suite", "second_judge", "metrics", "reference"}
        ),
        {name: stored.digest for name, stored in prepared.features.items()},
        code_version(),
    ]
    request = config.request.model_dump(
        mode="json",
        include={
            *("classes", "exchange", "sample_ids", "sample_classes", "forgotten_earlier"),
            *("neighbours", "nearest_by"),
        },
    )
    uri = storage.join(config.storage, "evaluations", f"{storage.digest_of([key, request])[:32]}.json")
    return uri, storage.read_json(uri) if storage.exists(uri) else None


def keep_base_metrics(uri: str, outcome: dict[str, Any], run_uri: str) -> None:
    """Leave the base model's metrics that a run took, for the runs after it."""
    records = metrics_log.read(storage.join(run_uri, METRICS))
    first = next(line for line in records if line["kind"] == "evaluation" and line["step"] == 0)
    storage.write_json(uri, {"result": outcome["before"], "record": first})


def result_of(
    prepared: Prepared,
    outcome: dict[str, Any],
    digest: str,
    partition_digest: str,
    seconds: float,
    attack_suite: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """result.json but for what is known later: the proof, the version registered. `digest` is of the weights
    that the run made."""
    config, timing = prepared.config, outcome["timing"]
    return {
        "run_id": prepared.run_id,
        "request": redacted(config.request.model_dump(mode="json")),
        "method": config.method.name,
        "method_config": (
            config.method.model_dump(mode="json")
            | {
                "trainable": config.trainable,
                "trainable_parameters": prepared.trainable,
                "hvp": run_weights.fitted(config, prepared.choice).method.hvp,
            }
        ),
        "model": {"name": config.tracking.model_name, "version": None, "alias": None},
        "base_digest": prepared.base.digest,
        "base_version": prepared.base_version and prepared.base_version.to_dict(),
        "features": feature_extractors.facts(prepared.features, prepared.judge),
        "precision": precision.facts(config),
        "weights_digest": digest,
        "lake_digest": prepared.lake.digest,
        "partition_digest": partition_digest,
        "stand_ins": _stand_ins(config.storage, partition_digest) if prepared.stand_ins else None,
        "code_version": code_version(),
        "seed": config.seed,
        "world_size": outcome["world_size"],
        "steps": outcome["steps"],
        "best_step": outcome["best_step"],
        "stopped": outcome["stopped"],
        "missing_checks": outcome["missing_checks"],
        "first_crossing_step": outcome["first_crossing_step"],
        "settled_step": outcome["settled_step"],
        "before": outcome["before"],
        "after": outcome["after"] | ({"attacks": by_name(attack_suite)} if attack_suite else {}),
        "requests": answered(prepared.answers, outcome["after"], config.gate),
        "gate": judge_gate(
            config.gate,
            outcome,
            prepared.judge.manifest.get("heldout_accuracy"),
            config.request.forgotten_classes,
            trained_against=config.method.uniformity_weight > 0 and prepared.one_judge,
            attack_suite=attack_suite,
        ),
        "timing": {
            "seconds_to_first_batch": timing["seconds_to_first_batch"],
            "seconds_per_step": timing["seconds_per_step"],
            "seconds_to_forget": timing["seconds_to_forget"],
            "gpu_seconds": (
                timing["step_seconds"] * outcome["world_size"] if config.train.gpus_per_worker else None
            ),
            "total_seconds": seconds,
        },
    }


def _stand_ins(storage_root: str, partition_digest: str) -> dict[str, Any]:
    """What was drawn in the place of purged rows, as the partition says it."""
    partition = find_partition(storage.join(storage_root, "partitions", partition_digest[:32]))
    assert partition is not None and partition.manifest.stand_ins is not None, "the run has read it"
    return partition.manifest.stand_ins.model_dump(mode="json")


def publish(
    prepared: Prepared, result: dict[str, Any], recorded: list[metrics_log.Record], tracker: "Tracker"
) -> None:
    """Sample grids, report and, last, result.json: under the run and as MLflow artifacts."""
    from pipeline.reports.pages import pages, read_grids

    names = [item.name for item in prepared.lake.manifest.classes]
    files = pages(
        result, recorded, read_grids(prepared.run_uri), configuration.dump(prepared.config), class_names=names
    )
    files[RESULT] = (json.dumps(result, indent=2, allow_nan=False) + "\n").encode()
    for name, data in files.items():
        storage.write_bytes(storage.join(prepared.run_uri, name), data)
    settings_files = {
        name: storage.read_bytes(storage.join(prepared.run_uri, name)) for name in (REQUEST, SETTINGS)
    }
    tracker.log_artifacts(files | settings_files)
    if attack_suite := result.get("attack_suite"):
        tracker.log_records([record_of(attack_suite, result["steps"])])
        tracker.set_tags({"under_attack": attack_suite_sentence(attack_suite)})
