"""The optimiser driven by one flat gradient, schedules, averages, checkpoints, keyed noise, small-scale
training."""

import math

import pytest
import torch
from tiny import SIDE, tiny_batch, tiny_dit, tiny_judge
from torch import nn

from pipeline.data.batch import Batch
from pipeline.training.checkpoint import Checkpoint, optimiser_moments, restore_moments
from pipeline.training.pretrain import judge_accuracy, train_dit, train_judge
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.noising import (
    Rows,
    StepRows,
    ask_for,
    drop_labels,
    exchange_rows,
    noised_rows,
    step_rows,
)
from pipeline.unlearning.optimizer import Average, adamw, apply_gradient, warmup, warmup_cosine

CPU = torch.device("cpu")


def parameters() -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=g, dtype=torch.float64)) for shape in ((3, 2), (4,))]


def test_steps_are_adamw_by_its_definition() -> None:
    """Loshchilov & Hutter (2019), algorithm 2, betas (0.9, 0.99), by hand."""
    params, lr, decay = parameters(), 0.01, 0.1
    optimiser = adamw(params, lr=lr, weight_decay=decay)
    wanted = torch.cat([p.detach().reshape(-1).clone() for p in params])
    m, v = torch.zeros(10, dtype=torch.float64), torch.zeros(10, dtype=torch.float64)
    for step in range(1, 6):
        gradient = torch.randn(10, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        assert apply_gradient(optimiser, params, gradient, lr=lr, clip=None) == pytest.approx(
            gradient.norm().item()
        )
        m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
        wanted = (
            wanted - lr * decay * wanted - lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.99**step)).sqrt() + 1e-8)
        )
        torch.testing.assert_close(
            torch.cat([p.detach().reshape(-1) for p in params]), wanted, rtol=1e-10, atol=1e-12
        )
    assert all(p.grad is None for p in params)


def test_steps_are_torchs_own_to_the_bit() -> None:
    params, twins = parameters(), parameters()
    optimiser = adamw(params, lr=0.01, weight_decay=0.1)
    other = torch.optim.AdamW(twins, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    for step in range(3):
        for p, twin in zip(params, twins, strict=True):
            p.grad = torch.full_like(p, step - 0.5)
            twin.grad = p.grad.clone()
        optimiser.step()
        other.step()
    assert all(torch.equal(p, twin) for p, twin in zip(params, twins, strict=True))
    assert optimiser.state_dict()["state"].keys() == other.state_dict()["state"].keys()


@pytest.mark.parametrize("clip", [None, 0.5, 1e9])
def test_clipping_bounds_the_gradient_and_reports_the_norm_before(clip: float | None) -> None:
    params = parameters()
    optimiser = torch.optim.SGD(params, lr=1.0)
    before = torch.cat([p.detach().reshape(-1) for p in params])
    gradient = torch.arange(10, dtype=torch.float64)
    norm = apply_gradient(optimiser, params, gradient, lr=0.1, clip=clip)
    moved = (before - torch.cat([p.detach().reshape(-1) for p in params])) / 0.1
    assert norm == pytest.approx(math.sqrt(285))
    assert moved.norm().item() == pytest.approx(0.5 if clip == 0.5 else norm)
    torch.testing.assert_close(moved / moved.norm(), gradient / gradient.norm())


def test_warmups() -> None:
    assert [warmup(step, lr=2.0, warmup_steps=4) for step in (-3, 0, 1, 2, 4, 9)] == [
        0,
        0,
        0.5,
        1.0,
        2.0,
        2.0,
    ]
    assert [warmup(step, lr=2.0, warmup_steps=0) for step in (0, 1, 9)] == [0, 2.0, 2.0]
    assert [
        warmup_cosine(step, lr=1.0, warmup_steps=10, total=110) for step in (5, 10, 60, 110, 200)
    ] == pytest.approx([0.5, 1.0, 0.525, 0.05, 0.05])


def test_average_is_exponential_and_decay_zero_follows_exactly() -> None:
    start, then = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])
    slow, exact = Average({"w": start}, 0.9), Average({"w": start}, 0.0)
    for average in (slow, exact):
        average.update({"w": then})
        average.update({"w": then})
    torch.testing.assert_close(slow.values["w"], 0.81 * start + 0.19 * then)
    assert torch.equal(exact.values["w"], then)
    assert torch.equal(start, torch.tensor([1.0, 2.0]))


def test_a_checkpoint_comes_back_to_the_bit() -> None:
    params = [nn.Parameter(p.detach().float()) for p in parameters()]
    names = ["blocks.0.weight", "y/label"]
    optimiser = adamw(params, lr=0.1, weight_decay=0.0)
    for step in range(3):
        apply_gradient(optimiser, params, torch.full((10,), 0.1 * (step + 1)), lr=0.1, clip=None)
    named = dict(zip(names, params, strict=True))
    kept = Checkpoint(
        iteration=3,
        trained={name: p.detach().clone() for name, p in named.items()},
        average={name: p.detach() / 3 for name, p in named.items()},
        moments=optimiser_moments(optimiser, names),
        progress={"rule": {"below_since": None, "target": 0.05}, "before": {"x": [1, 2.5]}},
    )
    back = Checkpoint.from_files(kept.to_files())
    assert (back.iteration, back.progress) == (kept.iteration, kept.progress)
    for group in ("trained", "average", "moments"):
        first, second = getattr(kept, group), getattr(back, group)
        assert first.keys() == second.keys() and len(first) > 0
        assert all(
            torch.equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first
        )

    twins = [nn.Parameter(back.trained[name].clone()) for name in names]
    other = adamw(twins, lr=0.1, weight_decay=0.0)
    restore_moments(other, names, back.moments)
    gradient = torch.linspace(-1, 1, 10)
    for chosen, who in ((optimiser, params), (other, twins)):
        apply_gradient(chosen, who, gradient, lr=0.1, clip=None)
    assert all(torch.equal(a, b) for a, b in zip(params, twins, strict=True))


def drawn(batch: Batch, *, seed: int = 0, step: int = 1, term: str = "retain", model_seed: int = 0) -> Rows:
    return noised_rows(
        tiny_dit(dtype=torch.float32, seed=model_seed), batch, seed=seed, step=step, term=term, device=CPU
    )


def test_noise_is_keyed_by_seed_step_term_and_sample_alone() -> None:
    """Neither the place in the batch nor the company nor the model matters; all the keys do."""
    batch = tiny_batch([0, 2, 3], each=3)
    rows = drawn(batch)
    assert (
        len({tuple(eps.reshape(-1).tolist()) for eps in rows.noise.eps}) == len(batch)
        and len(set(rows.noise.t.tolist())) > 1
    )
    order = [8, 0, 3]
    some = drawn(batch.take(order), model_seed=7)
    assert torch.equal(some.noise.t, rows.noise.t[order]) and torch.equal(
        some.noise.eps, rows.noise.eps[order]
    )
    again = Batch.of(sample_id=batch.sample_id, occurrence=(1,) * len(batch), y=batch.y, mean=batch.mean)
    for other in (drawn(batch, seed=1), drawn(batch, step=2), drawn(batch, term="forget"), drawn(again)):
        assert (other.noise.eps - rows.noise.eps).abs().amax(dim=(1, 2, 3)).min() > 0.1
        assert not torch.equal(other.noise.t, rows.noise.t)


def test_latents_are_drawn_from_their_posterior() -> None:
    batch = tiny_batch([0, 2], each=300)
    latent = Batch.of(
        sample_id=batch.sample_id,
        occurrence=batch.occurrence,
        y=batch.y,
        mean=batch.mean,
        std=torch.full_like(batch.mean, 0.5),
    )
    first, again, later = drawn(latent), drawn(latent), drawn(latent, step=2)
    assert torch.equal(first.x0, again.x0) and not torch.equal(first.x0, later.x0)
    z = (first.x0 - batch.mean) / 0.5
    assert abs(z.mean()) < 0.05 and abs(z.std() - 1) < 0.05
    assert torch.equal(drawn(batch).x0, batch.mean)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_a_share_of_the_labels_is_dropped(fraction: float) -> None:
    y, uniform = (
        torch.zeros(4000, dtype=torch.long),
        torch.rand(4000, generator=torch.Generator().manual_seed(0)),
    )
    for labels in drop_labels(fraction, 9)(y, uniform):
        assert abs((labels == 9).float().mean() - fraction) < 0.03 and set(labels.tolist()) <= {0, 9}


def test_a_share_of_the_rows_is_held_under_labels_that_were_forgotten_earlier() -> None:
    y, uniform = (
        torch.zeros(4000, dtype=torch.long),
        torch.rand(4000, generator=torch.Generator().manual_seed(0)),
    )
    student, teacher = drop_labels(0.1, 9, held=(3, 5), held_fraction=0.2)(y, uniform)
    assert torch.equal(student, teacher), "the teacher is asked for what it gives there"
    for label, fraction in ((9, 0.1), (3, 0.1), (5, 0.1), (0, 0.7)):
        assert abs((student == label).float().mean() - fraction) < 0.03, label
    dropped, _ = drop_labels(0.1, 9)(y, uniform)
    assert torch.equal(dropped == 9, student == 9), "the same rows lose their label as without it"


MAPPING = {1: (2,), 0: (3,)}


def rows_of_a_step(exchange: Batch | None, *, share_noise: bool = False) -> StepRows:
    return step_rows(
        tiny_dit(dtype=torch.float32),
        tiny_batch([2, 3], each=8),
        tiny_batch([0, 1], each=8),
        exchange,
        seed=0,
        step=1,
        device=CPU,
        null_fraction=0.0,
        exchange_classes=MAPPING,
        share_noise=share_noise,
    )


def test_rows_of_the_exchange_classes_carry_the_forgotten_labels() -> None:
    batch = exchange_rows(tiny_batch([2, 3], each=8), MAPPING)
    assert (batch.y.tolist(), batch.sample_id[::8]) == ([0] * 8 + [1] * 8, ("3-0", "2-0"))
    for share_noise in (False, True):
        rows = rows_of_a_step(batch, share_noise=share_noise)
        assert rows.exchange is not None
        assert rows.exchange.y.tolist() == batch.y.tolist() and rows.forget.y.tolist() == [0] * 8 + [1] * 8
        assert rows.retain.y.tolist() == rows.retain.target_y.tolist() == [2] * 8 + [3] * 8
        assert torch.equal(rows.forget.noise.eps, rows.exchange.noise.eps) == share_noise


def test_against_a_teacher_the_retain_rows_ask_for_a_forgotten_label_and_its_exchange() -> None:
    rows = rows_of_a_step(None)
    assert rows.exchange is not None
    assert torch.equal(rows.exchange.x0, rows.retain.x0) and not torch.equal(
        rows.exchange.noise.eps, rows.retain.noise.eps
    )
    asked = list(zip(rows.exchange.y.tolist(), rows.exchange.target_y.tolist(), strict=True))
    assert set(asked) == {(1, 2), (0, 3)}
    assert torch.equal(rows_of_a_step(None).exchange.y, rows.exchange.y)  # type: ignore[union-attr]


def test_a_mixture_is_asked_of_the_rows_of_its_own_classes_and_drawn_by_the_others() -> None:
    relabel = ask_for({0: (2, 3)})
    places = torch.rand(600, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 2, 3] * 200)
    student, teacher = relabel(labels, places)
    assert set(student.tolist()) == {0}
    assert (teacher[labels > 1] == labels[labels > 1]).all()  # a row of the mixture asks for itself
    others = teacher[labels == 1]
    assert set(others.tolist()) == {2, 3} and 60 < int((others == 2).sum()) < 140
    shown = exchange_rows(tiny_batch([2, 3], each=8), {0: (2, 3)})
    assert shown.y.tolist() == [0] * 16 and {name[0] for name in shown.sample_id} == {"2", "3"}


def test_pretraining_learns_and_is_repeatable() -> None:
    rows = tiny_batch([0, 1, 2, 3], each=8)
    losses: list[list[float]] = []
    nets = []
    for _ in range(2):
        model = tiny_dit(dtype=torch.float32)
        model.net.initialise(torch.Generator().manual_seed(0))  # type: ignore[operator]
        said: list[float] = []
        train_dit(
            model,
            rows,
            seed=0,
            batch_size=32,
            label_dropout=0.1,
            device=CPU,
            collectives=Collectives(),
            steps=60,
            lr=1e-2,
            warmup_steps=5,
            clip=1.0,
            weight_decay=0.0,
            ema=0.0,
            progress=lambda step, loss, said=said: said.append(loss),
        )
        losses.append(said)
        nets.append(model.net)
    assert sum(losses[0][-10:]) < 0.6 * sum(losses[0][:10])
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


def test_the_judge_learns_to_tell_classes_apart() -> None:
    judge, rows, heldout = (
        tiny_judge(),
        tiny_batch([0, 1, 2, 3], each=16),
        tiny_batch([0, 1, 2, 3], each=16, seed=9),
    )
    before = judge_accuracy(judge, heldout, device=CPU)
    train_judge(
        judge,
        rows,
        seed=0,
        batch_size=32,
        noise=0.1,
        device=CPU,
        collectives=Collectives(),
        steps=60,
        lr=1e-2,
        warmup_steps=5,
        clip=None,
        weight_decay=0.0,
        ema=0.9,
        progress=lambda step, loss: None,
    )
    assert before < 0.9 < judge_accuracy(judge, heldout, device=CPU)
    assert heldout.mean.shape == (64, 1, SIDE, SIDE)
