"""The residual judge: it learns what small images show, its statistics are those of the averaged weights, and
shifts move nothing else."""

from typing import Any

import pytest
import torch
from torch import nn

from models.judge import Judge, build_judge, initialise
from models.resnet_judge import recalibrate, resnet_description, shifted
from pipeline.data.batch import Batch
from pipeline.seeding import generator
from pipeline.training.pretrain import judge_accuracy, train_judge
from pipeline.unlearning.collectives import Collectives

NAMES = ["light", "dark", "stripes"]


def rows(each: int, seed: int) -> Batch:
    g = torch.Generator().manual_seed(seed)
    patterns = torch.stack(
        [torch.full((3, 16, 16), 0.5), torch.full((3, 16, 16), -0.5), torch.ones(3, 16, 16)]
    )
    patterns[2, :, ::2] = -1
    y = torch.arange(3).repeat(each)
    mean = (patterns[y] + 0.3 * torch.randn(len(y), 3, 16, 16, generator=g)).clamp(-1, 1)
    return Batch.of(sample_id=tuple(map(str, range(len(y)))), occurrence=(0,) * len(y), y=y, mean=mean)


def trained(**more: Any) -> Judge:
    judge = build_judge(resnet_description(shape=(3, 16, 16), num_classes=3, class_names=NAMES, width=4))
    initialise(judge.net, generator(0, "judge"))
    train_judge(
        judge,
        rows(32, 0),
        seed=0,
        batch_size=32,
        noise=0.1,
        shift=2,
        device=torch.device("cpu"),
        collectives=Collectives(),
        steps=30,
        lr=1e-2,
        warmup_steps=5,
        clip=None,
        weight_decay=0.01,
        ema=0.9,
        progress=lambda step, loss: None,
        **more,
    )
    return judge


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns_and_judges_rows_one_by_one(precision: str) -> None:
    judge, held = trained(precision=precision), rows(20, 1)
    assert judge_accuracy(judge, held, device=torch.device("cpu")) > 0.95
    with torch.no_grad():
        together, alone = judge.logits(held.mean), torch.cat([judge.logits(x[None]) for x in held.mean])
        assert torch.allclose(together, alone, atol=1e-4) and judge.features(held.mean).shape == (
            60,
            judge.feature_size,
        )


def test_smoothed_labels_make_it_less_sure_and_no_worse() -> None:
    held = rows(20, 1)
    sure = []
    for smoothing in (0.0, 0.3):
        judge = trained(label_smoothing=smoothing)
        assert judge_accuracy(judge, held, device=torch.device("cpu")) > 0.95
        with torch.no_grad():
            sure.append(judge.logits(held.mean).softmax(1).amax(1).mean().item())
    assert sure[1] < sure[0] and sure[1] == pytest.approx(0.8, abs=0.1)  # 0.7 + 0.3 / 3


def test_with_the_mirror_an_image_and_its_mirror_image_are_judged_alike() -> None:
    plain, x = trained(), rows(4, 1).mean
    judge = build_judge(plain.config | {"mirror": True})
    judge.net.load_state_dict(plain.net.state_dict())
    plain.net.train(), judge.net.train()
    with torch.no_grad():
        assert torch.equal(judge.logits(x), plain.logits(x)), "what it learns from is not mirrored"
        plain.net.eval(), judge.net.eval()
        torch.testing.assert_close(judge.logits(x), (plain.logits(x) + plain.logits(x.flip(-1))) / 2)
        torch.testing.assert_close(judge.features(x), judge.features(x.flip(-1)))


def test_statistics_are_plain_means_over_the_batches() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
    batches = [
        torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(k)) * (k + 1) for k in range(3)
    ]
    with torch.no_grad():
        net(batches[0])
    recalibrate(net, iter(batches))
    norm = net[0]
    assert isinstance(norm, nn.BatchNorm2d) and not net.training and norm.momentum == 0.1
    assert torch.allclose(
        norm.running_mean, torch.stack([x.mean(dim=(0, 2, 3)) for x in batches]).mean(0), atol=1e-6
    )
    assert torch.allclose(
        norm.running_var, torch.stack([x.var(dim=(0, 2, 3)) for x in batches]).mean(0), atol=1e-5
    )


def test_a_shift_moves_the_image_and_mirrors_the_rim() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(shifted(x, torch.tensor([[2, 2]]), 2), x)
    moved = shifted(x, torch.tensor([[3, 2]]), 2)
    assert torch.equal(moved[0, 0, :3], x[0, 0, 1:]) and torch.equal(moved[0, 0, 3], x[0, 0, 2])


def test_images_too_small_for_it_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"judge\.net: got resnet for images of 8 pixels, expected at least 16"
    ):
        resnet_description(shape=(1, 8, 8), num_classes=2, class_names=["a", "b"], width=4)
