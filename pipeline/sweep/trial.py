"""A trial: the main job's loop on shared weights, partition and base metrics, in one process or on the main
job's workers; what it reports; its weights measured again on seeds that no trial saw."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from models import weights
from pipeline import config as configuration
from pipeline import storage
from pipeline.config import UnlearnConfig
from pipeline.config.sweep import Verify
from pipeline.data.partition import Partition, find_partition
from pipeline.errors import InputError
from pipeline.evaluation import stored_result
from pipeline.evaluation.gate import judge_gate
from pipeline.runs.local import train
from pipeline.runtime import metrics_log
from pipeline.seeding import seed_of
from pipeline.sweep import scores
from pipeline.sweep.space import configured
from pipeline.training.periodic_eval import check
from pipeline.training.run_folder import METRICS, OUTCOME, TRAINED
from pipeline.training.sample_grids import draw_grids
from pipeline.training.step import Inputs
from pipeline.training.worker_inputs import Sources, assemble
from pipeline.unlearning.collectives import Collectives

TRIAL = "trial.json"  # a trial's row of the sweep's table, written by the driver when it has ended
SETTINGS = "settings.json"  # written by the driver when it starts
Report = Callable[[dict[str, Any]], None]


def trial_uri(sweep_uri: str, number: int) -> str:
    return storage.join(sweep_uri, "trials", f"{number:03d}")


def rows(sweep_uri: str) -> list[dict[str, Any]]:
    """The rows of all trials that have ended, by number."""
    names = storage.listing(storage.join(sweep_uri, "trials"))
    places = [storage.join(sweep_uri, "trials", name, TRIAL) for name in sorted(names)]
    return [storage.read_json(place) for place in places if storage.exists(place)]


def run_and_report(number: int, settings: dict[str, Any], plan: dict[str, Any], report: Report) -> None:
    """Trial `number` of a sweep; `plan` is what all trials share (`search_ray.make_plan`).

    It reports after every check and once at the end. An outcome that lies in storage is only reported.
    """
    uri = trial_uri(plan["sweep_uri"], number)
    try:
        config = configured(configuration.parse(UnlearnConfig, plan["base"]), settings)
    except InputError as error:  # values that do not go together: a result about this point, nothing to retry
        report(_failed(number, str(error)))
        return
    progress = Progress(config, plan["objectives"], plan["world"], number, report)
    if storage.exists(storage.join(uri, OUTCOME)):
        outcome = stored_result.read(storage.join(uri, OUTCOME))
    elif plan["runner"] == "inline":
        outcome = _inline(config, plan, uri, progress.see)
    else:
        outcome = _on_workers(config, plan, uri, progress.see)
    failure = outcome.get("failed")
    report(_failed(number, failure) if failure else final_report(outcome, config, plan, number, uri))


def final_report(
    outcome: dict[str, Any], config: UnlearnConfig, plan: dict[str, Any], number: int, uri: str
) -> dict[str, Any]:
    """What a finished trial reports: the sweep's table has nothing else of it."""
    checks = [r for r in metrics_log.read(storage.join(uri, METRICS)) if r["kind"] == "evaluation"]
    timing = outcome["timing"]
    return {
        "number": number,
        "step": outcome["steps"],
        "held": scores.held(checks, config.evaluate.patience_steps),
        "values": scores.values_of(outcome, config, plan["objectives"]),
        "finished": True,
        "failed": None,
        "gate_passed": judge_gate(
            config.gate,
            outcome,
            plan["judge_accuracy"],
            config.request.forgotten_classes,
            config.method.uniformity_weight > 0 and plan["one_judge"],
        )["passed"],
        "settled_step": outcome["settled_step"],
        "first_crossing_step": outcome["first_crossing_step"],
        "after": outcome["after"],
        "seconds": {
            "steps": timing["step_seconds"],
            "evaluation": sum(r["seconds"] for r in checks if r["step"] > 0) + timing["final_check_seconds"],
            "setup": outcome.get("seconds", {}).get("setup"),
        },
    }


def _failed(number: int, reason: str) -> dict[str, Any]:
    nothing = {"values": None, "after": None, "seconds": None}
    return {"number": number, "step": 0, "held": 1.0, "finished": True, "failed": reason, **nothing}


class Progress:
    """Sees a trial's records and reports its standing after every check."""

    def __init__(
        self, config: UnlearnConfig, objectives: list[str], world_size: int, number: int, report: Report
    ) -> None:
        self._config, self._objectives, self._world_size = config, objectives, world_size
        self._number, self._report = number, report
        self._checks: list[metrics_log.Record] = []
        self._step_seconds = 0.0

    def see(self, record: metrics_log.Record) -> None:
        if record["kind"] == "step":
            self._step_seconds += record["seconds"] + record["seconds_data"] if record["step"] >= 1 else 0.0
            return
        self._checks.append(record)
        if record["step"] == 0:
            return
        standing = scores.so_far(self._checks, self._step_seconds, self._world_size)
        self._report(
            {
                "number": self._number,
                "step": record["step"],
                "held": scores.held(self._checks, self._config.evaluate.patience_steps),
                "values": scores.values_of(standing, self._config, self._objectives),
                "finished": False,
                "failed": None,
                "after": standing["after"],
                "seconds": {
                    "steps": self._step_seconds,
                    "evaluation": sum(r["seconds"] for r in self._checks[1:]),
                    "setup": None,
                },
            }
        )


def _inline(
    config: UnlearnConfig, plan: dict[str, Any], uri: str, see: Callable[[metrics_log.Record], None]
) -> dict[str, Any]:
    torch.set_num_threads(config.train.threads)
    prepared = plan["prepared"][str(config.optim.batch_size)]
    partition = find_partition(prepared["partition_uri"])
    assert partition is not None
    return run(
        config,
        partition,
        Sources(**plan["shared"]),
        uri=uri,
        before=prepared["before"],
        observe=see,
        device=torch.device("cuda" if plan["gpus"] else "cpu"),
    )


def _on_workers(
    config: UnlearnConfig, plan: dict[str, Any], uri: str, see: Callable[[metrics_log.Record], None]
) -> dict[str, Any]:
    from pipeline.training import worker

    if plan["address"]:  # this process is inside that cluster: training may wait for it to grow
        os.environ.setdefault("RAY_ADDRESS", plan["address"])
    prepared = plan["prepared"][str(config.optim.batch_size)]

    def watch(records: list[metrics_log.Record]) -> None:
        for record in records:
            see(record)

    with metrics_log.Follower(storage.join(uri, METRICS), watch):
        outcome: dict[str, Any] = worker.train(
            config,
            partition_uri=prepared["partition_uri"],
            run_uri=uri,
            before=prepared["before"],
            **plan["shared"],
        )
    if "failed" in outcome:
        storage.write_json(storage.join(uri, OUTCOME), outcome)
    return outcome


def inputs_of(config: UnlearnConfig, partition: Partition, shared: Sources, device: torch.device) -> Inputs:
    """A single worker's inputs, its stream read without Ray."""
    return assemble(config, partition, shared, collectives=Collectives(), device=device)


def measure_base(
    config: UnlearnConfig, partition: Partition, shared: Sources, device: torch.device
) -> dict[str, Any]:
    """{"result", "record"} of the base model, as a run's first measure gives them."""
    inputs = inputs_of(config, partition, shared, device)
    inputs.model.net.eval()
    metrics = check(inputs, 0, final=True)
    return {"result": metrics.to_result(), "record": metrics.to_record(0)}


def run(
    config: UnlearnConfig,
    partition: Partition,
    shared: Sources,
    *,
    uri: str,
    before: dict[str, Any] | None,
    observe: Callable[[metrics_log.Record], None],
    device: torch.device,
) -> dict[str, Any]:
    """One trial, from the base weights or its last checkpoint; leaves metrics, checkpoints, weights and,
    last, the outcome under `uri`.

    Returns the outcome; `observe` sees every record as it is made. A run that breaks down numerically has the
    outcome {"failed": why}: it would break again however often it is tried.
    """
    started = time.perf_counter()
    inputs = inputs_of(config, partition, shared, device)
    outcome = train(inputs, uri, before=before, observe=observe, setup_s=time.perf_counter() - started)
    if "failed" in outcome:
        storage.write_json(storage.join(uri, OUTCOME), outcome)
    return outcome


def on_fresh_seeds(config: UnlearnConfig, verify: Verify, attempt: int) -> UnlearnConfig:
    """`config` with the seed and the numbers of images of the verification."""
    evaluate = config.evaluate.model_copy(
        update={
            "final_samples": verify.samples or config.evaluate.final_samples,
            "final_retain_samples": verify.retain_samples or config.evaluate.final_retain_samples,
        }
    )
    seed = seed_of(config.seed, "verification", attempt) % 2**31
    return config.model_copy(update={"seed": seed, "evaluate": evaluate})


def measure_again(
    config: UnlearnConfig,
    partition: Partition,
    shared: Sources,
    *,
    uri: str,
    verify: Verify,
    attempt: int,
    device: torch.device,
) -> dict[str, Any]:
    """{"before", "after"} on fresh noise, the same for both, of the trial under `uri`; its sample grids are
    sampled there too."""
    inputs = inputs_of(config, partition, shared, device)
    again = replace(inputs, config=on_fresh_seeds(config, verify, attempt))
    inputs.model.net.eval()
    metrics: dict[str, Any] = {"seed": again.config.seed}
    trained = weights.from_bytes(storage.read_bytes(storage.join(uri, TRAINED)), TRAINED)
    for moment in ("before", "after"):
        if moment == "after":
            with torch.no_grad():
                for name, value in trained.items():
                    inputs.model.net.get_parameter(name).copy_(value)
        metrics[moment] = check(again, 0, final=True).to_result()
        draw_grids(
            inputs.model, config, inputs.subject, storage.join(uri, "samples", f"{moment}.safetensors")
        )
    return metrics
