"""Depth weights: the adversarial pool, and the gradient of what is held and of what is redirected."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from steps import student
from tiny import CLASSES, relative, tiny_batch, tiny_dit
from torch import Tensor

from models.diffusion import Noise
from models.families.transformer import Transformer
from pipeline.data.batch import Batch
from pipeline.unlearning.adversary import STARTS, Adversary
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.gradients import Gradients, LocalGradients
from pipeline.unlearning.methods.table import METHODS, method_settings
from pipeline.unlearning.noising import drop_labels, noised_rows
from pipeline.unlearning.parameters import flat, label_weights
from pipeline.unlearning.redirection import (
    ADVERSARY,
    Mixture,
    RedirectionRows,
    near_classes,
    nearest_labels,
    redirection_rows,
    redirection_terms,
    to_others,
)

MIXTURE = Mixture(
    weight=0.3, rows=8, label_weight=0.5, label_rows=4, others_weight=0.5, others_rows=4, near_rows=4
)
POOL: dict[str, Any] = {
    "size": 4,
    "buckets": 3,
    "rates": [0.05],
    "restart_every": 6,
    "seed": 3,
}
EXCHANGE = {1: (2,)}


def adversary_of(model: Transformer, forgotten: tuple[int, ...] = (1,), **changes: Any) -> Adversary:
    adversary = Adversary(
        model, forgotten, [c for c in range(CLASSES) if c not in forgotten], **{**POOL, **changes}
    )
    adversary.renew(1)
    return adversary


def rows_of(
    model: Transformer,
    adversary: Adversary,
    rank: int = 0,
    world: int = 1,
    nearest: dict[str, int] | None = None,
    siblings: dict[int, Batch] | None = None,
    beside: Batch | None = None,
) -> RedirectionRows:
    def lanes(batch_rows: int) -> list[int]:
        each = batch_rows // 4
        return [lane * each + row for lane in range(rank, 4, world) for row in range(each)]

    retain = tiny_batch([0, 2, 3], each=4, dtype=torch.float64).take(range(8)).take(lanes(8))
    forget = tiny_batch([1], each=8, seed=1, dtype=torch.float64).take(lanes(MIXTURE.forget_rows))
    return redirection_rows(
        model,
        retain,
        forget,
        adversary,
        MIXTURE,
        lanes=4,
        rank=rank,
        world_size=world,
        seed=0,
        step=5,
        device=torch.device("cpu"),
        retain_labels=drop_labels(0.25, model.null_label),
        retained=(0, 2, 3),
        exchange=EXCHANGE,
        nearest=nearest or {},
        siblings=siblings or {},
        near={},
        beside=beside,
    )


def test_an_embedding_in_place_of_its_label_predicts_the_same() -> None:
    model = tiny_dit()
    x, t, y = (
        torch.randn(5, 1, 4, 4).double(),
        torch.tensor([0, 10, 500, 700, 999]),
        torch.tensor([0, 1, 2, 3, 4]),
    )
    assert torch.equal(model.net(x, t, y), model.net(x, t, label_weights(model)[y]))


def test_the_pool_begins_at_every_start_and_anew_in_turn() -> None:
    model = tiny_dit()
    adversary = adversary_of(model, size=8, restart_every=16)
    assert [entry.shape for entry in adversary.entries] == [(1, 16), (3, 16)] * 4
    table = label_weights(model).detach()
    own, mean, beside, null, gaussian = (adversary.entries[i] for i in range(len(STARTS)))
    assert torch.equal(own, table[1:2])
    assert torch.equal(mean, table[[0, 2, 3]].mean(0).expand(3, -1))
    assert torch.equal(null, table[CLASSES].expand(3, -1))
    assert not any(torch.equal(beside[0], row) or torch.equal(gaussian[0], row) for row in table)

    def changed(step: int) -> list[int]:
        before = [entry.detach().clone() for entry in adversary.entries]
        with torch.no_grad():
            for entry in adversary.entries:
                entry.add_(1.0)
        adversary.renew(step)
        return [i for i, (a, b) in enumerate(zip(before, adversary.entries)) if not torch.equal(a + 1.0, b)]

    assert [changed(step) for step in range(2, 18)] == [
        [],
        [7],
        [],
        [6],
        [],
        [5],
        [],
        [4],
        [],
        [3],
        [],
        [2],
        [],
        [1],
        [],
        [0],
    ]
    assert torch.equal(adversary.entries[0], table[[0, 2, 3]].mean(0, keepdim=True)), "the next of the starts"


def test_an_entry_that_begins_anew_forgets_its_moments_and_no_other_does() -> None:
    adversary = adversary_of(tiny_dit())
    adversary.move(torch.ones(sum(entry.numel() for entry in adversary.entries), dtype=torch.float64))
    assert len(adversary.optimizer.state) == 4
    adversary.renew(1 + 6 - 3 * 6 // 4)
    assert [entry in adversary.optimizer.state for entry in adversary.entries] == [True, True, True, False]


def test_the_class_s_own_row_is_the_one_before_anything_moved() -> None:
    model = tiny_dit()
    adversary = Adversary(model, (1,), (0, 2, 3), **POOL)
    row = label_weights(model)[1].detach().clone()
    with torch.no_grad():
        label_weights(model).add_(1.0)
    adversary.renew(1)
    assert torch.equal(adversary.entries[0][0], row)


def test_rows_have_embeddings_of_their_class_and_timestep() -> None:
    model = tiny_dit()
    adversary = adversary_of(model, (1, 3), size=8)
    with torch.no_grad():
        for index, entry in enumerate(adversary.entries):
            entry.copy_(10.0 * index + torch.arange(len(entry)).double().unsqueeze(1).expand_as(entry))
    slots = adversary.slots(torch.tensor([1, 3, 1, 1, 3, 1]), [0, 1, 2, 4, 5, 7])
    assert slots.tolist() == [0, 3, 4, 0, 3, 6], "even entries are class 1's, odd ones class 3's"
    values = adversary.embeddings(torch.tensor([0, 2, 2, 3, 3]), torch.tensor([999, 0, 334, 667, 999]))[:, 0]
    assert values.tolist() == [0.0, 20.0, 21.0, 32.0, 32.0]
    with pytest.raises(ValueError, match=r"redirection.pool: got 4 embeddings for 5"):
        Adversary(model, (0, 1, 2, 3, 4), (), **POOL)


def test_under_other_labels_half_the_rows_are_null_and_show_a_retained_label() -> None:
    student_y, teacher_y = to_others([0, 2, 3], 4, {})(
        torch.ones(6).long(), torch.tensor([0.0, 0.2, 0.49, 0.5, 0.7, 0.99])
    )
    assert student_y.tolist() == [4, 4, 4, 0, 2, 3] and teacher_y.tolist() == [0, 2, 3, 0, 2, 3]


@pytest.mark.parametrize("family", ["dit", "sit", "repa"])
def test_the_terms_are_what_they_say(family: str) -> None:
    """Against each row's loss by itself: weights, labels, targets and noise."""
    model, named, teacher = student(subset="all", family=family)
    params, adversary = list(named.values()), adversary_of(model)
    rows = rows_of(model, adversary)
    (_, retain), (_, shown), (_, own), (_, others) = rows.held
    assert [len(part) for part in (retain, shown, own, others, rows.adversarial)] == [8, 4, 4, 4, 8]
    assert set(shown.y.tolist()) == set(own.y.tolist()) == {1}
    assert set(shown.target_y.tolist()) == set(own.target_y.tolist()) == {2}
    assert rows.adversarial.y.tolist() == [0, 1, 2, 3] * 2 and set(rows.adversarial.target_y.tolist()) == {2}

    def squared(x0: Tensor, y: Tensor, noise: Noise, wanted: Tensor) -> Tensor:
        return (model.predict(model.net, x0, y, noise).value - wanted).square().mean()

    keep = torch.zeros((), dtype=torch.float64)
    for weight, part in ((1.0, retain), (0.25, shown), (0.25, own), (0.5, others)):
        keep = keep + weight * squared(
            part.x0, part.y, part.noise, teacher.predict(part, part.target_y).value
        )
    ad = rows.adversarial
    # of the way from data to noise, and what is to be predicted
    data_at_one = family == "sit"
    t = ad.noise.t.double() / (1000 if family == "dit" else 1)
    shares = (1 - t if data_at_one else t).tolist()
    velocity = ad.x0 - ad.noise.eps if data_at_one else ad.noise.eps - ad.x0
    e = torch.stack(
        [
            adversary.entries[slot][int(share * len(adversary.entries[slot]))]
            for slot, share in zip(ad.y.tolist(), shares, strict=True)
        ]
    )
    redirected = squared(ad.x0, e.detach(), ad.noise, teacher.predict(ad, ad.target_y).value)
    true = squared(ad.x0, e, ad.noise, ad.noise.eps if family == "dit" else velocity)
    terms = redirection_terms(model, rows, 0.3, teacher=teacher, adversary=adversary)
    local = LocalGradients(params=params, terms=terms)
    for name, loss in (("keep", keep + 0.3 * redirected), ("forget", true)):
        gradient, value = local.gradient(name, twice=False)
        assert relative(value, loss.detach()) < 1e-12
        wanted = torch.autograd.grad(loss, params, allow_unused=True, retain_graph=True)
        assert relative(gradient, flat(wanted, params)) < 1e-12, name
    attack, _ = LocalGradients(params=adversary.entries, terms=terms).gradient(ADVERSARY, twice=False)
    wanted = torch.autograd.grad(true, adversary.entries)
    assert relative(attack, flat(wanted, adversary.entries)) < 1e-12


@pytest.mark.parametrize(
    ("method", "family"),
    [("exchange", "dit"), ("surgery", "dit"), ("uno", "dit"), ("uno", "sit"), ("surgery", "repa")],
)
def test_ranks_and_micro_batches_give_the_gradient_of_the_whole(method: str, family: str) -> None:
    model, named, teacher = student(subset="all", family=family)
    params, adversary = list(named.values()), adversary_of(model)

    def gradients(rank: int, world: int, micro_batches: int) -> LocalGradients:
        terms = redirection_terms(
            model,
            rows_of(model, adversary, rank, world),
            0.3,
            teacher=teacher,
            adversary=adversary,
            micro_batches=micro_batches,
        )
        return LocalGradients(params=params, terms=terms, hvp="exact" if micro_batches == 1 else "recompute")

    settings = method_settings(method, {})

    def update(local: LocalGradients) -> Tensor:
        step = Gradients(index=1, local=local, collectives=Collectives())
        return METHODS[method].gradient(step, settings)

    whole = update(gradients(0, 1, 1))
    assert relative(update(gradients(0, 1, 4)), whole) < 1e-12
    for term in ("keep", "forget"):
        parts = [gradients(rank, 4, 2).gradient(term, twice=False)[0] for rank in range(4)]
        together = gradients(0, 1, 1).gradient(term, twice=False)[0]
        assert relative(torch.stack(parts).mean(0), together) < 1e-12, term


def test_the_adversary_goes_down_the_true_loss() -> None:
    model = tiny_dit()
    named = {name: p.requires_grad_(False) for name, p in model.net.named_parameters()}
    adversary = adversary_of(model)
    rows = rows_of(model, adversary)
    assert named

    def loss() -> Tensor:
        ad = rows.adversarial
        return model.losses(model.net, ad.x0, adversary.embeddings(ad.y, ad.noise.t), ad.noise).mean()

    before = loss().item()
    for _ in range(20):
        adversary.move(flat(torch.autograd.grad(loss(), adversary.entries), adversary.entries))
    assert loss().item() < before


def test_a_kind_s_noise_does_not_depend_on_how_many_rows_other_kinds_have() -> None:
    model = tiny_dit()
    adversary = adversary_of(model)
    rows = rows_of(model, adversary)
    forget = tiny_batch([1], each=8, seed=1, dtype=torch.float64)
    alone = noised_rows(model, replace(forget), seed=0, step=5, term=ADVERSARY, device=torch.device("cpu"))
    assert torch.equal(alone.noise.eps, rows.adversarial.noise.eps)


def test_a_row_without_an_exchange_class_is_shown_as_the_label_that_denoises_it_best() -> None:
    """A model whose loss is least under label 3 for rows above zero, under label 2 for the others."""
    model = tiny_dit()
    forget = tiny_batch([1], each=6, dtype=torch.float64)
    bright = torch.tensor([True, False, True, True, False, False])
    forget = replace(
        forget,
        units=None,
        stored=(torch.where(bright.view(-1, 1, 1, 1), 0.9, -0.9).expand_as(forget.mean).clone(),),
    )

    def losses(net: object, x0: Tensor, y: Tensor, noise: Noise, **options: object) -> Tensor:
        return (y != torch.where(x0.flatten(1).mean(1) > 0, 3, 2)).double() + noise.eps.square().flatten(
            1
        ).mean(1)

    model.losses = losses  # type: ignore[method-assign]
    nearest = nearest_labels(model, forget, (0, 2, 3), seed=0, device=torch.device("cpu"))
    assert nearest == {f"1-{k}": 3 if bright[k] else 2 for k in range(6)}


def test_rows_that_are_near_a_label_ask_the_base_for_it() -> None:
    model = tiny_dit()
    rows = rows_of(model, adversary_of(model), nearest={f"1-{k}": 3 if k % 2 else 0 for k in range(8)})
    assert rows.adversarial.target_y.tolist() == [0, 3] * 4
    assert set(rows.held[2][1].target_y.tolist()) == {0} and set(rows.held[1][1].target_y.tolist()) == {2}


def test_named_samples_ask_the_base_about_other_rows_of_their_class_on_the_same_noise() -> None:
    model = tiny_dit()
    siblings = {1: tiny_batch([1], each=3, seed=7, dtype=torch.float64)}
    adversary = adversary_of(model)
    plain, rows = rows_of(model, adversary), rows_of(model, adversary, siblings=siblings)
    assert len(rows.held) == 4 and rows.held[0][1].target_x0 is None, "what is retained is itself"
    for part, same in ((rows.held[2][1], plain.held[2][1]), (rows.adversarial, plain.adversarial)):
        assert torch.equal(part.x0, same.x0) and torch.equal(part.noise.eps, same.noise.eps)
        assert set(part.target_y.tolist()) == {1}, "its own label, as the class goes on being sampled"
        assert part.target_x0 is not None
        assert all(any(torch.equal(x, other) for other in siblings[1].mean) for x in part.target_x0)
    assert len({tuple(x.flatten().tolist()) for x in rows.adversarial.seen_by_teacher}) > 1
    # a rank's rows are those of the whole batch
    quarter = rows_of(model, adversary, 1, 4, siblings=siblings).adversarial
    whole = [tuple(x.flatten().tolist()) for x in rows.adversarial.seen_by_teacher]
    assert {tuple(x.flatten().tolist()) for x in quarter.seen_by_teacher} <= set(whole)
    alone = redirection_rows_of_samples(model, adversary, siblings)
    assert len(alone.held) == 3, "no label changes what it shows"


def redirection_rows_of_samples(
    model: Transformer, adversary: Adversary, siblings: dict[int, Batch]
) -> RedirectionRows:
    """Of a request that names samples alone: no class is exchanged."""
    return redirection_rows(
        model,
        tiny_batch([0, 2, 3], each=4, dtype=torch.float64).take(range(8)),
        tiny_batch([1], each=8, seed=1, dtype=torch.float64),
        adversary,
        MIXTURE,
        lanes=4,
        rank=0,
        world_size=1,
        seed=0,
        step=5,
        device=torch.device("cpu"),
        retain_labels=drop_labels(0.25, model.null_label),
        retained=(0, 1, 2, 3),
        exchange={},
        nearest={},
        siblings=siblings,
        near={},
        beside=None,
    )


def test_what_is_near_a_class_is_shown_more_often_and_held_by_rows_of_its_own() -> None:
    student_y, teacher_y = to_others([0, 2, 3], 4, {1: [3]})(
        torch.ones(8).long(), torch.tensor([0.0, 0.2, 0.49, 0.5, 0.6, 0.74, 0.75, 0.99])
    )
    assert student_y.tolist() == [4, 4, 4, 0, 2, 3, 3, 3] and teacher_y.tolist() == [0, 2, 3, 0, 2, 3, 3, 3]
    model = tiny_dit()
    beside = tiny_batch([3], each=4, seed=9, dtype=torch.float64)
    rows = rows_of(model, adversary_of(model), beside=beside)
    weight, near = rows.held[-1]
    assert (weight, len(near)) == (0.5, 4), "4 rows beside 8 retained ones: each weighs as much"
    assert torch.equal(near.x0, beside.mean) and near.target_y.tolist() == near.y.tolist() == [3] * 4
    half = rows_of(model, adversary_of(model), 0, 2, beside=beside.take(range(2)))
    assert half.held[-1][0] == 0.5


def test_near_classes_are_those_under_which_the_base_denoises_a_class_best() -> None:
    model = tiny_dit()
    forget = tiny_batch([0, 1], each=2, dtype=torch.float64)
    order = torch.tensor([0.0, 3.0, 1.0, 2.0])

    def losses(net: object, x0: Tensor, y: Tensor, noise: Noise, **options: object) -> Tensor:
        return order[y] + noise.eps.square().flatten(1).mean(1)

    model.losses = losses  # type: ignore[method-assign]
    near = near_classes(model, forget, {1: [3, 2], 0: [2, 3]}, 1, seed=0, device=torch.device("cpu"))
    assert near == {1: [2], 0: [2]}
    assert near_classes(model, forget, {1: [3, 2]}, 0, seed=0, device=torch.device("cpu")) == {1: []}
