"""A training that was killed goes on from its last checkpoint to the bits it would have come to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.judge import build_judge, initialise
from models.resnet_judge import resnet_description
from pipeline.data.batch import Batch
from pipeline.seeding import generator
from pipeline.training.checkpoint import commit, latest
from pipeline.training.pretrain import Keeping, train_dit, train_judge
from pipeline.unlearning.collectives import Collectives
from tests.tiny import tiny_batch, tiny_dit, tiny_vae

COMMON: dict[str, Any] = {
    "seed": 0,
    "batch_size": 16,
    "lr": 1e-2,
    "warmup_steps": 3,
    "weight_decay": 0.01,
    "ema": 0.9,
    "steps": 12,
}
COMMON |= {"device": torch.device("cpu"), "collectives": Collectives()}


class Killed(Exception):
    pass


def dit(**more: Any) -> nn.Module:
    model = tiny_dit(dtype=torch.float32)
    train_dit(model, tiny_batch([0, 1, 2, 3], each=8), label_dropout=0.1, clip=1.0, **COMMON, **more)
    return model.net


def vae(**more: Any) -> nn.Module:
    """Its batch norms carry running statistics from step to step."""
    model = tiny_vae(dtype=torch.float32, batch_norm="tracked")
    model.net.train()
    train_dit(model, tiny_batch([0, 1, 2, 3], each=8), label_dropout=0.0, clip=1.0, **COMMON, **more)
    return model.net


def resnet(**more: Any) -> nn.Module:
    judge = build_judge(resnet_description(shape=(3, 16, 16), num_classes=2, class_names=["a", "b"], width=4))
    initialise(judge.net, generator(0, "judge"))
    mean = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    rows = Batch.of(
        sample_id=tuple(map(str, range(32))), occurrence=(0,) * 32, y=torch.arange(32) % 2, mean=mean
    )
    train_judge(judge, rows, noise=0.1, shift=1, clip=None, precision="bf16", **COMMON, **more)
    return judge.net


@pytest.mark.parametrize("train", [dit, vae, resnet])
def test_a_killed_training_ends_with_the_same_bits(train: Callable[..., nn.Module], tmp_path: Path) -> None:
    uri = str(tmp_path)
    seen: list[int] = []

    def killed_at(last: int) -> Callable[[int, float], None]:
        def progress(step: int, loss: float) -> None:
            seen.append(step)
            if step == last:
                raise Killed

        return progress

    def keeping() -> Keeping:
        return Keeping(start=latest(uri), save=lambda checkpoint: commit(uri, checkpoint), every_s=0.0)

    whole = train(progress=killed_at(99)).state_dict()
    seen.clear()
    for last in (5, 9):
        with pytest.raises(Killed):
            train(progress=killed_at(last), keeping=keeping())
    again: dict[str, Tensor] = train(progress=killed_at(99), keeping=keeping()).state_dict()
    # a step whose checkpoint was not written is made again, no other
    assert seen == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 9, 10, 11, 12]
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    # killed while another model was trained after it
    finished = train(progress=killed_at(0), keeping=keeping()).state_dict()
    assert len(seen) == 14 and all(torch.equal(whole[name], finished[name]) for name in whole)


def test_without_a_due_checkpoint_only_the_end_is_kept(tmp_path: Path) -> None:
    saved: list[int] = []
    dit(
        progress=lambda step, loss: None,
        keeping=Keeping(start=None, save=lambda kept: saved.append(kept.iteration), every_s=3600.0),
    )
    assert saved == [12]
