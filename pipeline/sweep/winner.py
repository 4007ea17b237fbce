"""The best trial of many was also the luckiest: it is measured again on seeds that no trial saw, and only
then registered."""

import time
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.config import UnlearnConfig
from pipeline.config.sweep import Verify
from pipeline.data.partition import find_partition
from pipeline.evaluation import stored_result
from pipeline.evaluation.gate import judge_gate
from pipeline.runs import preflight, unlearn
from pipeline.runs.result import REPORT, RESULT
from pipeline.sweep.space import configured, shown
from pipeline.sweep.trial import measure_again, trial_uri
from pipeline.training.run_folder import METRICS, OUTCOME, TRAINED
from pipeline.training.worker_inputs import Sources

if TYPE_CHECKING:
    from pipeline.sweep.search import PreparedSweep
    from pipeline.tracking.mlflow_runs import Tracker


def choose(
    prepared: "PreparedSweep", plan: dict[str, Any], summary: dict[str, Any], parent: "Tracker"
) -> dict[str, Any]:
    """Verify trials, best first, until one passes the gate on fresh seeds, and register that one as
    candidate.

    Returns {"number", "version", "run_id", "report", "verified": [...]}; number None when none held, and
    nothing is registered then.
    """
    from pipeline.sweep.search_ray import on_one_worker, trial_resources

    config = prepared.config
    rows = {row["number"]: row for row in summary["trials"]}
    verified: list[dict[str, Any]] = []
    for attempt, number in enumerate(summary["ranking"][: config.verify.attempts]):
        row = rows[number]
        print(f"  verifying trial {number} ({shown(row['settings'])}) on seeds that no trial saw", flush=True)
        settings = configured(prepared.base.config, row["settings"])
        uri = trial_uri(prepared.uri, number)
        shared = plan["prepared"][str(settings.optim.batch_size)]
        metrics = on_one_worker(
            _measure_again,
            trial_resources(prepared),
            settings.model_dump(mode="json"),
            shared["partition_uri"],
            prepared.base.sources,
            uri,
            config.verify.model_dump(),
            attempt,
        )
        outcome = stored_result.read(storage.join(uri, OUTCOME)) | {
            "before": metrics["before"],
            "after": metrics["after"],
        }
        gate = judge_gate(
            settings.gate,
            outcome,
            plan["judge_accuracy"],
            settings.request.forgotten_classes,
            settings.method.uniformity_weight > 0 and plan["one_judge"],
        )
        verified.append({"number": number, "seed": metrics["seed"], "after": metrics["after"], "gate": gate})
        if gate["passed"]:
            version = _register(prepared, settings, row, outcome, shared, summary, parent, verified)
            return {"number": number, "verified": verified, **version}
    return {"number": None, "version": None, "run_id": None, "report": None, "verified": verified}


def _register(
    prepared: "PreparedSweep",
    settings: UnlearnConfig,
    row: dict[str, Any],
    outcome: dict[str, Any],
    shared: dict[str, Any],
    summary: dict[str, Any],
    parent: "Tracker",
    verified: list[dict[str, Any]],
) -> dict[str, Any]:
    """The trial as a run of its own: what it was trained with, what it measured on fresh seeds, version and
    report."""
    started = time.perf_counter()
    named_settings = settings.model_copy(update={"run_id": f"{prepared.sweep_id}-best"})
    best = preflight.check(named_settings)
    result_uri = storage.join(best.run_uri, RESULT)
    if storage.exists(result_uri):
        result = stored_result.read(result_uri)
    else:
        tags = {
            "mlflow.parentRunId": parent.mlflow_run_id,
            "sweep": prepared.sweep_id,
            "trial": str(row["number"]),
        }
        with unlearn.begin(best, tags) as tracker:
            source = trial_uri(prepared.uri, row["number"])
            for name in (METRICS, TRAINED, "samples/before.safetensors", "samples/after.safetensors"):
                storage.write_bytes(
                    storage.join(best.run_uri, name), storage.read_bytes(storage.join(source, name))
                )
            storage.write_json(storage.join(best.run_uri, OUTCOME), outcome)
            selection = {
                "sweep": prepared.sweep_id,
                "trial": row["number"],
                "of": len(summary["trials"]),
                "objectives": summary["objectives"],
                "values_when_chosen": row["values"],
                "after_when_chosen": row["after"],
                "seed_verified": verified[-1]["seed"],
                "verified_before_it": len(verified) - 1,
            }
            result = unlearn.finish(
                best, tracker, outcome, shared["partition_digest"], started, {"selection": selection}
            )
    return {
        "version": result["model"]["version"],
        "model": result["model"]["name"],
        "run_id": best.run_id,
        "report": storage.join(best.run_uri, REPORT),
        "gate_passed": result["gate"]["passed"],
    }


def _measure_again(
    config: dict[str, Any],
    partition_uri: str,
    sources: dict[str, Any],
    uri: str,
    verify: dict[str, Any],
    attempt: int,
    gpu: bool,
) -> dict[str, Any]:
    import torch

    settings = UnlearnConfig.model_validate(config)
    torch.set_num_threads(settings.train.threads)
    partition = find_partition(partition_uri)
    assert partition is not None
    device = torch.device("cuda" if gpu else "cpu")
    return measure_again(
        settings,
        partition,
        Sources(**sources),
        uri=uri,
        verify=Verify(**verify),
        attempt=attempt,
        device=device,
    )
