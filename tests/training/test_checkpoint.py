"""Checkpoints: whole or not there, and everything a run needs to go on is in them."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import storage
from pipeline.training.checkpoint import (
    KEEP,
    STATE,
    TENSORS,
    Checkpoint,
    commit,
    latest,
    optimiser_moments,
    restore,
    same_start,
)
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.optimizer import adamw


def checkpoint(iteration: int, value: float = 0.0) -> Checkpoint:
    """Every group of tensors with a value of its own."""

    def named(offset: int) -> dict[str, torch.Tensor]:
        return {
            "blocks.0.weight": torch.full((2, 3), value + offset),
            "bias": torch.full((2,), value - offset),
        }

    return Checkpoint(
        iteration=iteration,
        trained=named(1),
        average=named(2),
        moments={f"{name}/exp_avg": tensor for name, tensor in named(3).items()},
        best_weights=named(4),
        pending={4: named(5), 12: named(6)},
        progress={"step": iteration, "rule": {"best_step": 2}},
    )


def plain(found: Checkpoint | None) -> dict[str, Any]:
    """A checkpoint as lists, to compare."""
    assert found is not None

    def values(named: Any) -> dict[str, Any]:
        return {key: value.tolist() for key, value in named.items()}

    return {
        "iteration": found.iteration,
        "progress": found.progress,
        "pending": {step: values(named) for step, named in found.pending.items()},
        **{
            group: values(getattr(found, group))
            for group in ("trained", "average", "moments", "best_weights")
        },
    }


def test_everything_comes_back(tmp_path: Path) -> None:
    folder = commit(str(tmp_path), checkpoint(8))
    assert Path(folder).name == "00000008" and sorted(storage.listing(folder)) == sorted([STATE, TENSORS])
    assert plain(latest(str(tmp_path))) == plain(checkpoint(8))


def test_the_latest_counts_and_two_stay(tmp_path: Path) -> None:
    assert latest(str(tmp_path)) is None
    for iteration in (8, 9, 10, 100):
        commit(str(tmp_path), checkpoint(iteration))
        assert plain(latest(str(tmp_path))) == plain(checkpoint(iteration))
    assert KEEP == 2 and storage.listing(str(tmp_path)) == ["00000010", "00000100"]
    # a worker that is behind removes nothing newer
    commit(str(tmp_path), checkpoint(20))
    assert storage.listing(str(tmp_path)) == ["00000010", "00000020", "00000100"]


class Killed(BaseException):
    """Nothing in between catches it, as nothing catches SIGKILL."""


@pytest.mark.parametrize("writes", [0, 1])
@pytest.mark.parametrize("again", [False, True], ids=["a new place", "the same place"])
def test_a_killed_commit_leaves_the_one_before(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    writes: int,
    again: bool,
) -> None:
    """Killed before or between its two files.

    One that replaces a checkpoint of the same place (a run taken back and run to that step again) is none
    from the first moment: no state lies beside tensors that it does not speak of, not even one that is
    noticed.
    """
    uri = str(tmp_path)
    commit(uri, checkpoint(4))
    if again:
        commit(uri, checkpoint(8))
    original, left = storage.write_bytes, writes

    def dying(target: str, data: bytes) -> None:
        nonlocal left
        assert not storage.exists(storage.join(uri, "00000008", STATE)), "a state beside tensors not its own"
        if left == 0:
            raise Killed
        left -= 1
        original(target, data)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(storage, "write_bytes", dying)
        commit(uri, checkpoint(8, value=0.5))
    with caplog.at_level(logging.WARNING):
        assert plain(latest(uri)) == plain(checkpoint(4))
    assert caplog.records == []
    commit(uri, checkpoint(8, value=0.5))
    assert plain(latest(uri)) == plain(checkpoint(8, value=0.5))


@pytest.mark.parametrize("damage", ["cut short", "another's"])
def test_tensors_that_the_state_was_not_written_for_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    uri = str(tmp_path)
    commit(uri, checkpoint(4))
    folder = commit(uri, checkpoint(8))
    other = checkpoint(8, value=0.5).to_files()[TENSORS]
    data = other if damage == "another's" else storage.read_bytes(storage.join(folder, TENSORS))[:-8]
    storage.write_bytes(storage.join(folder, TENSORS), data)
    assert plain(latest(uri)) == plain(checkpoint(4))
    assert "does not have the digest" in caplog.text


def test_weights_average_and_moments_go_back_in_place() -> None:
    def built() -> tuple[dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
        named = {
            "a": torch.nn.Parameter(torch.tensor([1.0, -1.0])),
            "a/b": torch.nn.Parameter(torch.tensor([[0.5]])),
        }
        return named, adamw(list(named.values()), lr=0.1, weight_decay=0.0)

    def step(named: dict[str, torch.nn.Parameter], optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad()
        sum((parameter**3).sum() for parameter in named.values()).backward()
        optimiser.step()

    named, optimiser = built()
    for _ in range(3):
        step(named, optimiser)
    average = {name: parameter.detach() * 0.5 for name, parameter in named.items()}
    start = Checkpoint(
        iteration=3,
        trained={name: parameter.detach().clone() for name, parameter in named.items()},
        average=average,
        moments=optimiser_moments(optimiser, list(named)),
    )
    fresh, fresh_optimiser = built()
    fresh_average = {name: torch.zeros_like(parameter) for name, parameter in fresh.items()}
    restore(Checkpoint.from_files(start.to_files()), fresh, fresh_average, fresh_optimiser, list(fresh))
    for name in named:
        assert torch.equal(fresh[name], named[name]) and torch.equal(fresh_average[name], average[name])
    step(named, optimiser)
    step(fresh, fresh_optimiser)
    assert all(torch.equal(fresh[name], named[name]) for name in named), "the moments came back as well"


class TwoRanks(Collectives):
    """This rank's side of two: the other one has come to checkpoint `other`."""

    def __init__(self, other: int):
        super().__init__()
        self.answers = iter([other, -other])

    def largest(self, value: int) -> int:
        return max(value, next(self.answers))


@pytest.mark.parametrize(("mine", "other"), [(4, 4), (None, 0)])
def test_ranks_start_at_one_checkpoint(mine: int | None, other: int) -> None:
    start = None if mine is None else checkpoint(mine)
    assert same_start(start, TwoRanks(other)) is start


@pytest.mark.parametrize(("mine", "other", "span"), [(4, 8, "4 to 8"), (8, 4, "4 to 8"), (None, 8, "0 to 8")])
def test_ranks_at_different_checkpoints_do_not_start(mine: int | None, other: int, span: str) -> None:
    start = None if mine is None else checkpoint(mine)
    with pytest.raises(RuntimeError, match=rf"checkpoints of different steps \({span}\)"):
        same_start(start, TwoRanks(other))
