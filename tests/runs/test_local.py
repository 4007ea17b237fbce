"""A run without Ray: a function in one process, torchrun with two, the same weights as the loop itself."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.weights import weights_digest
from pipeline import lease, storage
from pipeline.config import UnlearnConfig, load
from pipeline.errors import InputError
from pipeline.runs import local, preflight
from pipeline.runs import unlearn as unlearn_job
from pipeline.training.loop import unlearn
from pipeline.training.run_folder import METRICS, TRAINED

ROOT = Path(__file__).resolve().parents[2]
QUICK = str(ROOT / "jobs/configs/quickstart.yaml")
FEW = [
    "evaluate.samples=20",
    "evaluate.retain_samples=1",
    "evaluate.sampler_steps=1",
    "evaluate.final_samples=100",
    "evaluate.final_retain_samples=1",
    "evaluate.final_sampler_steps=1",
    "optim.max_steps=4",
    "train.workers=[1, 2]",  # elastic: as many workers as there are, the same to the bit
]


def config_of(root: str, run_id: str, *more: str) -> UnlearnConfig:
    return load(UnlearnConfig, QUICK, [f"storage={root}", f"run_id={run_id}", *FEW, *more])


@pytest.fixture(scope="module")
def run(root: str) -> local.LocalRun:
    return local.unlearn(config_of(root, "one"))


def test_one_process_leaves_what_the_loop_trains(root: str, run: local.LocalRun) -> None:
    prepared = preflight.check(config_of(root, "loop"))
    trained = unlearn(local.open_run(prepared)[1]).trained
    assert run.result["weights_digest"] == weights_digest({**prepared.base.state, **trained})
    assert run.result["steps"] == 4 and run.result["world_size"] == 1
    names = {"request.yaml", "config.yaml", METRICS, "checkpoints", TRAINED, "outcome.json", "model"}
    assert names | {"result.json"} == set(storage.listing(run.uri))
    assert all(torch.equal(run.model.net.get_parameter(name), value) for name, value in trained.items())
    assert run.model.sample(labels=torch.tensor([1]), seeds=[0], cfg_scale=2.0, steps=1).shape == (1, 1, 8, 8)


def test_a_finished_run_is_not_run_again(root: str, run: local.LocalRun) -> None:
    before = Path(run.uri, METRICS).stat().st_mtime_ns
    again = local.unlearn(config_of(root, "one"))
    assert again.result == run.result and Path(run.uri, METRICS).stat().st_mtime_ns == before


def test_a_run_that_another_process_does_is_left_to_it(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = storage.join(root, "leases", "held")
    monkeypatch.setattr(unlearn_job.lease, "acquire_from_the_gone", lease.acquire)  # it is alive: no waiting
    with lease.held(uri, lasts_s=60), pytest.raises(InputError, match=r"leases/held: held by process \d+"):
        local.unlearn(config_of(root, "held"))
    assert "held" not in storage.listing(storage.join(root, "runs"))
    leases = storage.join(root, "leases", "one")
    assert storage.read_json(storage.join(leases, storage.listing(leases)[-1]))["released"]


def test_depth_weights_runs_and_goes_on_to_the_same_weights(root: str) -> None:
    """From its first checkpoint, the outcome having been lost, and with the forgotten rows read from their
    files."""
    few = [f"storage={root}", *FEW, "evaluate.every=2", "optim.batch_size=16", "redirection.rows=16"]
    few += ["redirection.others_rows=8", "redirection.label_rows=8", "optim.max_steps=3"]
    weights, few = str(ROOT / "jobs/configs/digits_weights.yaml"), [*few, "run_id=deep"]
    whole = local.unlearn(load(UnlearnConfig, weights, few))
    assert whole.result["method_config"]["depth"] == "weights" and whole.result["steps"] == 3
    assert whole.result["method_config"]["trainable"] == "all" and whole.result["method"] == "exchange"
    for name in ("result.json", "outcome.json", TRAINED, "model", "checkpoints/00000003"):
        storage.remove(storage.join(whole.uri, name))
    again = local.unlearn(load(UnlearnConfig, weights, [*few, "partition.held_bytes=0"]))
    assert again.result["weights_digest"] == whole.result["weights_digest"]


def test_what_needs_other_workers_is_refused_and_nothing_is_written(root: str) -> None:
    with pytest.raises(InputError, match="jobs/evaluate"):
        local.unlearn(config_of(root, "refused", "evaluate.metrics=[leakage]"))
    assert local.main(["--config", QUICK, "--set", f"storage={root}", "--set", "request.classes=[99]"]) == 2
    assert sorted(storage.listing(storage.join(root, "runs"))) == ["deep", "one"]


@pytest.mark.e2e
def test_torchrun_with_two_processes_trains_the_same_weights(root: str, run: local.LocalRun) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    overrides = [f"storage={root}", "run_id=two", *FEW, "partition.held_bytes=0"]
    settings = [word for override in overrides for word in ("--set", override)]
    answer = subprocess.run(
        [*command, "-m", "pipeline.runs.local", "--config", QUICK, *settings],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    result = storage.read_json(storage.join(root, "runs", "two", "result.json"))
    assert result["world_size"] == 2 and "result" in answer.stdout
    assert result["weights_digest"] == run.result["weights_digest"]
