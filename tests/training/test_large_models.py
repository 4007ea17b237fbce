"""What large models need: checkpoints beside the training, smaller moments."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import run, run_config

from models.weights import weights_digest
from pipeline.training import checkpoint as checkpoints
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.run_folder import RunFolder


def of_step(iteration: int) -> Checkpoint:
    return Checkpoint(iteration=iteration, trained={"w": torch.ones(2)}, average={}, moments={})


def test_a_checkpoint_is_written_beside_the_training_and_whole_when_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, commit = RunFolder(str(tmp_path), None), checkpoints.commit
    go_on, began = threading.Event(), threading.Event()

    def slow(uri: str, checkpoint: Checkpoint, part: None) -> str:
        began.set()
        assert go_on.wait(20)
        return commit(uri, checkpoint)

    monkeypatch.setattr(checkpoints, "commit", slow)
    folder.save(of_step(1))
    assert began.wait(20) and checkpoints.latest(str(tmp_path / "checkpoints")) is None, "the caller goes on"
    go_on.set()
    folder.save(of_step(2))
    folder.close()
    latest = checkpoints.latest(str(tmp_path / "checkpoints"))
    assert latest is not None and latest.iteration == 2


def test_a_checkpoint_that_could_not_be_written_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(uri: str, checkpoint: Checkpoint, part: None) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoints, "commit", full)
    folder = RunFolder(str(tmp_path), None)
    folder.save(of_step(1))
    with pytest.raises(OSError, match="no space left"):
        folder.save(of_step(2))


def test_what_is_saved_is_as_it_was_whenever_it_is_written() -> None:
    """The run goes on meanwhile: neither its timings nor its weights may be seen in an earlier checkpoint."""
    late: list[Checkpoint] = []
    early: list[dict[str, bytes]] = []
    from runs import run_inputs

    from pipeline.training.loop import Hooks, unlearn

    def save(checkpoint: Checkpoint) -> None:
        late.append(checkpoint)
        early.append(checkpoint.to_files())

    unlearn(run_inputs(run_config()), hooks=Hooks(save=save))
    assert [one.to_files() for one in late] == early and len(early) == 3


def test_bf16_moments_cost_a_small_part_of_the_way_and_go_on_to_the_bit() -> None:
    way: dict[str, Any] = {"optim.max_steps": 12, "evaluate.every": 6, "optim.clip": None, "optim.lr": 1e-3}
    base = run_config(**way)
    from runs import run_inputs

    from pipeline.unlearning.parameters import select

    start = {n: p.detach().clone() for n, p in select(run_inputs(base).model, base.trainable).items()}
    whole, _, _ = run(base)
    small, _, saved = run(run_config(**way, **{"optim.moments": "bf16"}))
    gone = torch.cat([(whole.trained[n] - p).flatten() for n, p in start.items()])
    apart = torch.cat([(whole.trained[n] - small.trained[n]).flatten() for n in start])
    assert 0 < apart.norm() / gone.norm() < 0.02
    first = Checkpoint.from_files(saved[0])
    assert {v.dtype for n, v in first.moments.items() if n.endswith("exp_avg")} == {torch.bfloat16}
    again, _, _ = run(run_config(**way, **{"optim.moments": "bf16"}), first)
    assert weights_digest(again.trained) == weights_digest(small.trained)
