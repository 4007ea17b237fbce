"""Methods of other papers against their formulas, written out: one process, float64, plain autograd."""

import math
from dataclasses import replace

import pytest
import torch
from steps import SMALL, own_rows, preparation, student, take_step
from tiny import relative, tiny_dit, tiny_rows, tiny_step_rows
from torch import Tensor

from models.diffusion import Noise
from models.families.transformer import Transformer
from pipeline.data.batch import Batch
from pipeline.seeding import generator
from pipeline.unlearning.methods.esd import partly_sampled
from pipeline.unlearning.methods.preparation import Memory, spread
from pipeline.unlearning.methods.selective_amnesia import drawn
from pipeline.unlearning.methods.table import METHODS, method_settings
from pipeline.unlearning.noising import Rows, noised_rows
from pipeline.unlearning.parameters import flat, select


def gradient(loss: Tensor, params: list[Tensor]) -> Tensor:
    return flat(torch.autograd.grad(loss, params, allow_unused=True, retain_graph=True), params)


def signal_and_noise(model: Transformer, t: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(abar_t) and sqrt(1 - abar_t), (N, 1, 1, 1)."""
    abar = model.diffusion.path.alpha_bar[t].view(-1, 1, 1, 1)
    return abar.sqrt(), (1 - abar).sqrt()


def noise_error(model: Transformer, part: Rows, target: Tensor | None = None) -> Tensor:
    """|eps - eps_theta(x_t, t, y)|^2 of every pixel."""
    a, s = signal_and_noise(model, part.noise.t)
    eps = part.noise.eps
    return (model.net(a * part.x0 + s * eps, part.noise.t, part.y) - (eps if target is None else target)) ** 2


def mask_of(method: str, **settings: float) -> Tensor:
    line, own = METHODS[method], method_settings(method, {**SMALL.get(method, {}), **settings})
    assert line.prepare is not None
    return line.prepare(preparation(own)).vectors["mask"]


def retain_gradient() -> tuple[Transformer, list[Tensor], Tensor]:
    model, named, _ = student()
    params = list(named.values())
    return model, params, gradient(noise_error(model, tiny_step_rows().retain).mean(), params)


# UNO's baselines


def test_surgery_ascent_leaves_the_retain_loss_alone() -> None:
    model, params, g_r = retain_gradient()
    g_f = gradient(noise_error(model, tiny_step_rows().forget).mean(), params)
    got = take_step("surgery_ascent", tiny_step_rows())
    assert relative(got, -(g_f - (g_f @ g_r) / (g_r @ g_r) * g_r)) < 1e-12
    assert abs(got @ g_r) < 1e-12


def test_ascent_and_descent_take_turns_as_the_authors_do_for_either_model() -> None:
    model, params, g_r = retain_gradient()
    g_f = gradient(noise_error(model, tiny_step_rows().forget).mean(), params)
    vae = {"first": "ascent", "project": True}
    for settings, index, wanted in (
        ({}, 1, g_r),
        ({}, 2, -g_f),
        (vae, 1, -g_f),
        (vae, 2, g_r - (g_f @ g_r) / (g_f @ g_f) * g_f),
    ):
        got = take_step("ascent_descent", tiny_step_rows(), index=index, settings=settings)
        assert relative(got, wanted) < 1e-12, (settings, index)


# SalUn


@pytest.mark.parametrize("saliency", [0.1, 0.5])
def test_salun_masks_once_by_the_forget_gradient_of_the_base(saliency: float) -> None:
    given = preparation(method_settings("salun", {}))
    base, params = given.model, list(given.named.values())
    assert isinstance(base, Transformer)
    rows = noised_rows(base, given.forget, seed=3, step=0, term="saliency", device=given.device)
    wanted = gradient(noise_error(base, rows).mean(), params).abs()
    mask = mask_of("salun", saliency=saliency)
    count = round(saliency * wanted.numel())
    assert mask.sum() == min(count, (wanted > 0).sum())
    assert wanted[mask].min() >= wanted[~mask].max()
    table = next(iter(given.named))
    assert table == "y_embedder.embedding_table.weight"
    others = mask_of("salun", saliency=1.0)[: given.named[table].numel()].view(given.named[table].shape)
    assert others[1].all() and not others[[0, 2, 3, 4]].any(), "other labels have no forget gradient"


def test_salun_trains_the_forgotten_label_on_what_another_one_predicts() -> None:
    """mask grad (|eps(x_f, c) - stop(eps(x_f, c'))|^2 + alpha L_r)."""
    model, params, g_r = retain_gradient()
    f = tiny_step_rows().forget
    other = replace(f, y=torch.full_like(f.y, 2))
    a, s = signal_and_noise(model, f.noise.t)
    target = model.net(a * f.x0 + s * f.noise.eps, f.noise.t, other.y).detach()
    g_u = gradient(noise_error(model, f, target).mean(), params)
    got = take_step("salun", tiny_step_rows(), settings={"saliency": 0.3, "retain_weight": 0.7})
    assert relative(got, mask_of("salun", saliency=0.3) * (g_u + 0.7 * g_r)) < 1e-12


def test_salun_without_an_exchange_class_takes_any_other_label() -> None:
    given = replace(preparation(method_settings("salun", {})), exchange={}, retained=[0, 1, 2, 3])
    rows = own_rows("salun", tiny_step_rows(64), given, Memory())
    assert set(rows.forget.target_y.tolist()) == {0, 2, 3} and set(rows.forget.y.tolist()) == {1}


# ESD


def sampled_until(
    model: Transformer, start: Tensor, y: Tensor, t_end: int, steps: int, scale: float
) -> Tensor:
    """x_t at t_end of a DDIM run with guidance over `steps` times, written out; x0 held in [-1, 1]."""
    times = torch.linspace(999, 0, steps).round().long().tolist()
    null = torch.full_like(y, model.null_label)
    x, now = start, 999
    for following in [*times[1:], 0]:
        if now <= t_end:
            break
        following = max(following, t_end)
        t = torch.full_like(y, now)
        e = model.net(x, t, null) + scale * (model.net(x, t, y) - model.net(x, t, null))
        abar, after = model.diffusion.path.alpha_bar[now], model.diffusion.path.alpha_bar[following]
        x0 = ((x - (1 - abar).sqrt() * e) / abar.sqrt()).clamp(-1, 1)
        e = (x - abar.sqrt() * x0) / (1 - abar).sqrt()
        x, now = after.sqrt() * x0 + (1 - after).sqrt() * e, following
    return x


@torch.no_grad()
def test_points_of_esd_lie_on_the_students_own_trajectory() -> None:
    model, _, _ = student()
    part = tiny_rows(6, [1], name="forget")
    times = torch.tensor([999, 998, 700, 333, 20, 0])
    part = replace(part, noise=Noise(t=times, eps=part.noise.eps))
    points = partly_sampled(model, part, guidance=3.0, steps=7)
    a, s = signal_and_noise(model, times)
    got = a * points.x0 + s * points.noise.eps
    for place, t_end in enumerate(times.tolist()):
        start, y = part.noise.eps[place : place + 1], part.y[place : place + 1]
        wanted = sampled_until(model, start, y, t_end, 7, 3.0)
        assert relative(got[place : place + 1], wanted) < 1e-12, t_end
    assert torch.equal(points.noise.t, times)


@pytest.mark.parametrize("points", ["sampled", "data"])
def test_esd_steers_away_from_the_label_on_eps_alone(points: str) -> None:
    """eps_T(null) - eta (eps_T(c) - eps_T(null)), without a retain term, or with one."""
    eta, rows = 2.5, tiny_step_rows()
    model, named, _ = student()
    base, params, f = tiny_dit(), list(named.values()), rows.forget
    if points == "sampled":
        f = partly_sampled(model, f, guidance=3.0, steps=4)
    a, s = signal_and_noise(model, f.noise.t)
    x_t, t, null = a * f.x0 + s * f.noise.eps, f.noise.t, torch.full_like(f.y, model.null_label)
    with torch.no_grad():
        away = base.net(x_t, t, f.y) - base.net(x_t, t, null)
        target = base.net(x_t, t, null) - eta * away
    erase = (model.net(x_t, t, f.y) - target).square().mean()
    retain = noise_error(model, rows.retain).mean()
    settings = {"eta": eta, "points": points, **({"sampler_steps": 4} if points == "sampled" else {})}
    got = take_step("esd", rows, settings=settings)
    assert relative(got, gradient(erase, params)) < 1e-12
    got = take_step("esd", rows, settings={**settings, "retain_weight": 0.5})
    assert relative(got, gradient(erase + 0.5 * retain, params)) < 1e-12


# SFR-on


def test_sfr_on_climbs_in_salient_weights_and_then_repairs() -> None:
    model, params, g_r = retain_gradient()
    losses = noise_error(model, tiny_step_rows().forget).flatten(1).mean(1)  # (N,)
    weights = losses.detach() ** -0.5
    weights = weights / weights.mean()
    g_f = gradient((weights * losses).mean(), params)
    alpha = 2.0 * (1 + math.cos(math.pi * 0.25)) / 2  # a quarter of the run is over
    assert relative(take_step("sfr_on", tiny_step_rows()), -alpha * (mask_of("sfr_on") * g_f)) < 1e-12
    assert relative(take_step("sfr_on", tiny_step_rows(), index=2), g_r) < 1e-12
    plain = take_step("sfr_on", tiny_step_rows(), settings={**SMALL["sfr_on"], "adaptivity": 0.0})
    g_f = gradient(losses.mean(), params)
    assert relative(plain, -alpha * (mask_of("sfr_on") * g_f)) < 1e-12


def test_retained_rows_are_of_the_labels_that_have_some() -> None:
    """Of a thousand labels, 16 are asked first; a small lake has rows of none of these."""
    given = preparation(method_settings("sfr_on", SMALL["sfr_on"]))
    there = replace(
        given,
        retained=range(1000),
        rows_of=lambda labels: given.rows_of([3]).take(range(4) if 3 in labels else []),
    )
    assert set(there.some_retained(3).y.tolist()) == {3} and len(there.some_retained(3)) == 3


def test_the_mask_of_sfr_on_is_the_quotient_of_two_fisher_diagonals() -> None:
    given = preparation(method_settings("sfr_on", SMALL["sfr_on"]))
    model, params = given.model, list(given.named.values())
    assert isinstance(model, Transformer)

    def fisher(batch: Batch) -> Tensor:
        rows = noised_rows(model, batch, seed=3, step=0, term="fisher", device=given.device)
        each = [
            gradient(noise_error(model, rows.take(slice(k, k + 1))).mean(), params) for k in range(len(rows))
        ]
        return torch.stack(each).square().mean(0)

    retained = given.rows_of([0, 2, 3])
    retained = retained.take(spread(range(len(retained)), 5))
    wanted = (fisher(given.forget) + 1e-15) / (fisher(retained) + 1e-15) >= 1
    assert torch.equal(mask_of("sfr_on"), wanted) and 0 < wanted.double().mean() < 1


# EraseDiff


def test_erasediff_weighs_the_forgetting_against_the_conflict() -> None:
    model, params, g_r = retain_gradient()
    f = tiny_step_rows().forget
    u = torch.special.ndtr(f.noise.eps)
    assert u.min() > 0 and u.max() < 1 and abs(u.mean().item() - 0.5) < 0.1
    g_u = gradient(noise_error(model, replace(f, noise=Noise(t=f.noise.t, eps=u))).mean(), params)
    conflict = (g_r @ g_u / (g_u @ g_u)).item()
    for eta in (conflict + 0.5, conflict - 0.5):
        got = take_step("erasediff", tiny_step_rows(), settings={"eta": max(0.0, eta)})
        weight = max(0.0, max(0.0, eta) - conflict)
        assert relative(got, g_r + weight * g_u) < 1e-12
    got = take_step("erasediff", tiny_step_rows(), settings={"weight": 0.1})
    assert relative(got, g_r + 0.1 * g_u) < 1e-12


# SISS


def test_siss_subtracts_two_scores_at_one_point_of_the_mixture() -> None:
    """By densities of the two normal distributions, as the paper writes them."""
    settings = {"mixture": 0.3, "forget_share": 0.2}
    own = method_settings("siss", settings)
    given, line = preparation(own), METHODS["siss"]
    assert line.prepare is not None
    memory = line.prepare(given)
    rows = tiny_step_rows()
    part = own_rows("siss", rows, given, memory).forget
    assert part.target_x0 is not None
    model, params, g_r = retain_gradient()
    (a, s), x, forgotten = signal_and_noise(model, part.noise.t), part.target_x0, part.x0
    m = a * forgotten + s * part.noise.eps
    kept_images = memory.siblings[1].mean
    assert all(any(torch.equal(one, image) for image in kept_images) for one in x)
    # the point is the noised kept row or the noised forgotten one, with the row's own noise
    eps = rows.forget.noise.eps
    of_a = [relative(m[k], (a * forgotten + s * eps)[k]) < 1e-9 for k in range(len(m))]
    of_x = [relative(m[k], (a * x + s * eps)[k]) < 1e-9 for k in range(len(m))]
    assert all(p != q for p, q in zip(of_a, of_x, strict=True)) and any(of_a) and any(of_x)

    def log_density(x0: Tensor) -> Tensor:
        deviation = s.flatten().expand(len(m))
        normal = torch.distributions.Normal(a * x0, deviation.view(-1, 1, 1, 1))
        return normal.log_prob(m).flatten(1).sum(1)

    q_x, q_a = log_density(x).exp(), log_density(forgotten).exp()
    both = 0.7 * q_x + 0.3 * q_a
    certain = both > 0  # where neither density underflows
    assert certain.sum() >= 6
    prediction = model.net(m, part.noise.t, part.y)
    error_x = (prediction - (m - a * x) / s).square().flatten(1).mean(1)
    error_a = (prediction - (m - a * forgotten) / s).square().flatten(1).mean(1)
    w_x, w_a = (torch.where(certain, q / both.clamp(min=1e-300), 0.0) for q in (q_x, q_a))
    missing_x = torch.where(certain, 0.0, torch.tensor(of_x) / 0.7)
    missing_a = torch.where(certain, 0.0, torch.tensor(of_a) / 0.3)
    g_x = gradient(((w_x + missing_x) * error_x).mean(), params)
    g_a = gradient(((w_a + missing_a) * error_a).mean(), params)
    scale = 0.2 * g_x.norm() / g_a.norm()
    got = take_step("siss", rows, settings=settings)
    assert relative(got, g_x + g_r - scale * g_a) < 1e-9


def test_siss_pairs_a_named_sample_with_others_of_its_class() -> None:
    given = replace(preparation(method_settings("siss", {})), exchange={}, retained=[0, 1, 2, 3])
    prepare = METHODS["siss"].prepare
    assert prepare is not None
    assert set(prepare(given).siblings[1].y.tolist()) == {1}


# Selective Amnesia


def test_selective_amnesia_trains_on_noise_replays_and_holds_by_fisher() -> None:
    model, params, g_r = retain_gradient()
    settings = {**SMALL["selective_amnesia"], "replay_weight": 0.5}
    own = method_settings("selective_amnesia", settings)
    given, line = preparation(own), METHODS["selective_amnesia"]
    assert line.prepare is not None
    memory = line.prepare(given)
    rows = own_rows("selective_amnesia", tiny_step_rows(), given, memory).forget
    assert rows.x0.min() >= -1 and rows.x0.max() <= 1 and set(rows.y.tolist()) == {1}
    base, moved = list(given.named.values()), flat(params, params)
    fisher = memory.vectors["fisher"]
    assert torch.equal(memory.vectors["base"], flat([p.detach() for p in base], base))
    penalty = 2 * 0.3 / 16 * fisher * (moved - memory.vectors["base"]).detach()  # 16 pixels
    wanted = gradient(noise_error(model, rows).mean(), params) + 0.5 * g_r + penalty
    assert relative(take_step("selective_amnesia", tiny_step_rows(), settings=settings), wanted) < 1e-12
    assert memory.replay is not None and memory.replay.y.tolist() == [0, 2, 3, 0, 2, 3]


def test_the_fisher_diagonal_of_selective_amnesia_squares_stretches_of_the_bound() -> None:
    """Sum over three stretches of the square of the gradient summed over their timesteps and pixels."""
    own = method_settings("selective_amnesia", SMALL["selective_amnesia"])
    given, prepare = preparation(own), METHODS["selective_amnesia"].prepare
    assert prepare is not None
    got = prepare(given).vectors["fisher"]
    model = given.model
    assert isinstance(model, Transformer)
    params = list(select(model, "labels_and_adaln:1").values())
    samples = drawn(given, [0, 3], "fisher samples")
    total = torch.zeros_like(got)
    for place, label in enumerate([0, 3]):
        g = generator(3, "fisher", f"fisher samples {place}")
        for start, stop in ((0, 333), (333, 666), (666, 1000)):
            t = torch.arange(start, stop)
            eps = torch.randn((len(t), 1, 4, 4), generator=g).double()
            x0 = samples.mean[place].expand(len(t), 1, 4, 4)
            y = torch.full((len(t),), label)
            part = Rows(x0=x0, y=y, target_y=y, noise=Noise(t=t, eps=eps))
            total += gradient(noise_error(model, part).sum(), params).square()
    assert relative(got, total / 2) < 1e-9
