"""A trial in one process: the same loop, its budget in seconds, going on from a checkpoint; the verification
on other noise."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sweeps import ROOT, TINY

from models import weights
from pipeline.config import SweepConfig, UnlearnConfig, load
from pipeline.config.sweep import Verify
from pipeline.data.partition import Partition
from pipeline.data.partition_ray import build_partition
from pipeline.runs import preflight
from pipeline.runtime import metrics_log
from pipeline.sweep import scores
from pipeline.sweep.space import base_config, configured
from pipeline.sweep.trial import measure_again, measure_base, run
from pipeline.training.worker_inputs import Sources

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(root: str) -> preflight.Prepared:
    path = str(ROOT / "jobs/configs/sweep_quickstart.yaml")
    config = load(
        SweepConfig,
        path,
        [f"storage={root}", *TINY, "set.optim.max_steps=6", "set.evaluate.patience_steps=50"],
    )
    return preflight.check(base_config(config))


@pytest.fixture(scope="module")
def partition(prepared: preflight.Prepared) -> Partition:
    return build_partition(prepared.config, prepared.lake, prepared.subject["neighbours"])


@pytest.fixture(scope="module")
def before(prepared: preflight.Prepared, partition: Partition) -> dict[str, Any]:
    return measure_base(prepared.config, partition, Sources(**prepared.sources), CPU)


def trained(uri: Path) -> dict[str, torch.Tensor]:
    return dict(weights.from_bytes((uri / "trained.safetensors").read_bytes(), "trained"))


def test_a_trial_whose_seconds_are_spent_goes_on_as_if_it_had_never_stopped(
    prepared: preflight.Prepared, partition: Partition, before: dict[str, Any], tmp_path: Path
) -> None:
    def go(config: UnlearnConfig, name: str) -> tuple[dict[str, Any], list[metrics_log.Record]]:
        seen: list[metrics_log.Record] = []
        shared = Sources(**prepared.sources)
        outcome = run(
            config,
            partition,
            shared,
            uri=str(tmp_path / name),
            before=before,
            observe=seen.append,
            device=CPU,
        )
        return outcome, seen

    whole, seen = go(prepared.config, "whole")
    assert [record["step"] for record in seen if record["kind"] == "step"] == [1, 2, 3, 4, 5, 6] and whole[
        "steps"
    ] == 6
    assert whole["before"] == before["result"] and whole["timing"]["final_check_seconds"] > 0

    short, _ = go(configured(prepared.config, {"optim.max_seconds": 1e-6}), "parts")
    assert short["steps"] == 1 and short["timing"]["step_seconds"] < whole["timing"]["step_seconds"]
    rest, again = go(prepared.config, "parts")
    assert rest["steps"] == 6 and [record["step"] for record in again if record["kind"] == "step"] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    first, second = trained(tmp_path / "whole"), trained(tmp_path / "parts")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert rest["after"] == whole["after"]


def test_the_base_is_measured_as_the_main_job_would(
    prepared: preflight.Prepared, partition: Partition, before: dict[str, Any]
) -> None:
    assert before["record"]["step"] == 0 and before["result"]["forget_fraction"]["n"] == 100
    again = measure_base(prepared.config, partition, Sources(**prepared.sources), CPU)
    assert again["result"] == before["result"]


def test_the_verification_samples_other_images_the_same_for_both(
    prepared: preflight.Prepared, partition: Partition, before: dict[str, Any], tmp_path: Path
) -> None:
    shared = Sources(**prepared.sources)
    outcome = run(
        prepared.config,
        partition,
        shared,
        uri=str(tmp_path),
        before=before,
        observe=lambda record: None,
        device=CPU,
    )

    def again(attempt: int) -> dict[str, Any]:
        verify = Verify(samples=100, retain_samples=1)
        return measure_again(
            prepared.config, partition, shared, uri=str(tmp_path), verify=verify, attempt=attempt, device=CPU
        )

    first, second = again(0), again(1)
    assert len({prepared.config.seed, first["seed"], second["seed"]}) == 3
    assert (
        first["before"]["fid"] != before["result"]["fid"]
        and first["before"]["fid"] != second["before"]["fid"]
    )
    assert first["after"] != outcome["after"] and again(0) == first
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {
        "before.safetensors",
        "after.safetensors",
    }
    assert (
        next(name for name, *_ in scores.measured_twice(outcome["after"], first["after"]))
        == "forget_fraction"
    )
