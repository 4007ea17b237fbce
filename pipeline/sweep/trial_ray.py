"""What Ray Tune runs for a trial: the same TorchTrainer as the main job, or the same loop inside the trial's
own process."""

import os
from collections.abc import Callable
from typing import Any

from pipeline import config as configuration
from pipeline import storage
from pipeline.config import UnlearnConfig
from pipeline.data.partition import find_partition
from pipeline.errors import InputError
from pipeline.evaluation.gate import judge_gate
from pipeline.runtime import metrics_log
from pipeline.sweep import scores
from pipeline.sweep.space import configured
from pipeline.sweep.trial import Shared
from pipeline.training.worker import METRICS, OUTCOME

TRIAL = "trial.json"  # a trial's row of the sweep's table, written by the driver when it has ended


def trial(config: dict[str, Any], plan: dict[str, Any]) -> None:
    """Tune's trainable. `config` is {"number", "settings"}, `plan` what all trials share (see `tune_ray`).

    It reports after every check and once at the end. A trial whose outcome lies in storage already only
    reports it: nothing is run twice, whatever Tune had noted of it before an interruption.
    """
    from ray import tune

    from pipeline.runtime import cluster_ray

    cluster_ray.quiet()
    uri = trial_uri(plan["sweep_uri"], config["number"])
    if storage.exists(storage.join(uri, TRIAL)):  # ended, though Tune was killed before it had noted so
        row = storage.read_json(storage.join(uri, TRIAL))
        tune.report({**row, "finished": row["status"] == scores.FINISHED, "failed": row["reason"]})
        return
    try:
        settings = configured(configuration.parse(UnlearnConfig, plan["base"]), config["settings"])
    except InputError as error:  # values that do not go together: a result about this point, nothing to retry
        tune.report(_failed(config["number"], str(error)))
        return
    progress = Progress(settings, plan["objectives"], plan["world"], config["number"], tune.report)
    if storage.exists(storage.join(uri, OUTCOME)):
        outcome = storage.read_json(storage.join(uri, OUTCOME))
    elif plan["runner"] == "inline":
        outcome = _inline(settings, plan, uri, progress.see)
    else:
        outcome = _on_workers(settings, plan, uri, progress.see)
    if "failed" in outcome:
        tune.report(_failed(config["number"], outcome["failed"]))
    else:
        tune.report(final(outcome, settings, plan, config["number"], uri))


def trial_uri(sweep_uri: str, number: int) -> str:
    return storage.join(sweep_uri, "trials", f"{number:03d}")


def final(
    outcome: dict[str, Any], config: UnlearnConfig, plan: dict[str, Any], number: int, uri: str
) -> dict[str, Any]:
    """What a finished trial reports: the sweep's table has nothing else of it."""
    checks = [r for r in metrics_log.read(storage.join(uri, METRICS)) if r["kind"] == "evaluation"]
    timing = outcome["timing"]
    return {
        "number": number,
        "step": outcome["steps"],
        "held": scores.held(checks, config.evaluate.hold_steps),
        "values": scores.values_of(outcome, config, plan["objectives"]),
        "finished": True,
        "failed": None,
        "gate_passed": judge_gate(
            config.gate,
            outcome,
            plan["judge_accuracy"],
            config.request.forgotten_classes,
            config.method.hat_weight > 0 and plan["one_judge"],
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


class Progress:
    """Sees a trial's records and reports its standing after every check."""

    def __init__(
        self,
        config: UnlearnConfig,
        objectives: list[str],
        world: int,
        number: int,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self._config, self._objectives, self._world, self._number, self._report = (
            config,
            objectives,
            world,
            number,
            report,
        )
        self._checks: list[metrics_log.Record] = []
        self._step_seconds = 0.0

    def see(self, record: metrics_log.Record) -> None:
        if record["kind"] == "step":
            self._step_seconds += record["seconds"] + record["seconds_data"] if record["step"] >= 1 else 0.0
            return
        self._checks.append(record)
        if record["step"] == 0:
            return
        standing = scores.so_far(self._checks, self._step_seconds, self._world)
        self._report(
            {
                "number": self._number,
                "step": record["step"],
                "held": scores.held(self._checks, self._config.evaluate.hold_steps),
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
    import torch

    from pipeline.sweep.trial import run

    torch.set_num_threads(config.train.threads)
    device = torch.device("cuda" if plan["gpus"] else "cpu")
    prepared = plan["prepared"][str(config.optim.batch_size)]
    partition = find_partition(prepared["partition_uri"])
    assert partition is not None
    return run(
        config,
        partition,
        Shared(**plan["shared"]),
        uri=uri,
        before=prepared["before"],
        observe=see,
        device=device,
    )


def _on_workers(
    config: UnlearnConfig, plan: dict[str, Any], uri: str, see: Callable[[metrics_log.Record], None]
) -> dict[str, Any]:
    from pipeline.training import worker

    if plan["address"]:  # this process is inside that cluster: training may wait for it to grow
        os.environ.setdefault("RAY_ADDRESS", plan["address"])
    prepared = plan["prepared"][str(config.optim.batch_size)]

    def watch(fresh: list[metrics_log.Record]) -> None:
        for record in fresh:
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


def _failed(number: int, why: str) -> dict[str, Any]:
    return {
        "number": number,
        "step": 0,
        "held": 1.0,
        "values": None,
        "finished": True,
        "failed": why,
        "after": None,
        "seconds": None,
    }
