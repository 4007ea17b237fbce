"""The penalty's directions and the projection, on plain vectors and on a network, against
autograd and numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from steps import PENALTY, cosine, naive_gradients, naive_uno, take_step
from tiny import FLOWS, relative, share, tiny_step_rows

from pipeline.unlearning.losses import Weights
from pipeline.unlearning.penalty import CHUNK, dot, penalty_directions, project_out

SEEDS = [0, 1, 2]


def two_vectors(seed: int, n: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    f = torch.randn(n, generator=g, dtype=torch.float64)
    return f, 0.4 * f + 0.8 * torch.randn(n, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_directions_are_the_derivatives_of_cos_squared(seed: int, scale: float) -> None:
    f, r = two_vectors(seed)
    f, r = (scale * f).requires_grad_(), r.requires_grad_()
    cos2 = (f @ r) ** 2 / ((f @ f) * (r @ r))
    wanted = torch.autograd.grad(cos2, (f, r))
    u, v, d = penalty_directions(f.detach(), r.detach())
    torch.testing.assert_close(u, wanted[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(v, wanted[1], rtol=1e-12, atol=0)
    np.testing.assert_allclose(float(d.cos), cosine(f.detach(), r.detach()), rtol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_descending_the_directions_lowers_cos_squared(seed: int) -> None:
    f, r = two_vectors(seed)
    u, v, _ = penalty_directions(f, r)
    assert abs(cosine(f - 0.1 * u, r - 0.1 * v)) < abs(cosine(f, r)) < abs(cosine(f + 0.1 * u, r + 0.1 * v))


def test_vanishing_gradients_give_a_zero_direction() -> None:
    zero, r = torch.zeros(5), torch.ones(5)
    u, v, d = penalty_directions(zero, r)
    assert u.abs().max() == v.abs().max() == 0 and d.cos == 0
    assert torch.equal(project_out(r, zero), r)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_beside_a_gradient_of_rounding_noise_the_direction_stays_bounded(dtype: torch.dtype) -> None:
    f, noise = (vector.to(dtype) for vector in two_vectors(0))
    edge = torch.finfo(dtype).eps ** 0.5 * f.norm() / noise.norm()  # |g_r| = sqrt(eps) |g_f|
    above, at, below, far_below = (
        penalty_directions(f, scale * edge * noise)[1].norm().item() for scale in (100, 1.001, 0.5, 1e-4)
    )
    assert at == pytest.approx(100 * above, rel=1e-2)  # as 1 / |g_r|
    assert below == pytest.approx(at, rel=1e-2) and far_below == pytest.approx(at, rel=1e-2)


def test_products_of_long_vectors_are_summed_in_float64_over_all_of_them() -> None:
    """In float32 the small products are lost beside the large one."""
    n = 2 * CHUNK + 5
    x = torch.full((n,), 1e-3)
    x[0], x[-1] = 1e4, -2.0
    expected = float((x.double() ** 2).sum())
    assert dot(x, x).item() == pytest.approx(expected, rel=1e-10)
    mixed = torch.ones(n)
    mixed[CHUNK:] = -1
    assert dot(torch.ones(n), mixed).item() == CHUNK - (CHUNK + 5)


@pytest.mark.parametrize("seed", SEEDS)
def test_projection_is_that_of_linear_algebra(seed: int) -> None:
    f, r = (vector.numpy() for vector in two_vectors(seed))
    wanted = r - np.linalg.lstsq(f[:, None], r, rcond=None)[0] * f
    got = project_out(torch.from_numpy(r), torch.from_numpy(f)).numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)
    assert abs(got @ f) <= 1e-12 * np.linalg.norm(got) * np.linalg.norm(f)
    assert got @ r > 0  # it still descends what is kept


MODELS: dict[str, dict[str, Any]] = {
    "dit": {},
    "dit with a learned variance": {"learn_sigma": True},
    **{family: {"family": family} for family in FLOWS},
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("hvp", ["exact", "recompute"])
@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_two_phases_equal_plain_double_backward(micro_batches: int, hvp: str, model: str) -> None:
    options = MODELS[model]
    rows = tiny_step_rows(family=options.get("family", "dit"))
    got = take_step("uno", rows, micro_batches=micro_batches, hvp=hvp, **options)
    wanted = naive_uno(0, rows, **options)
    g_r = naive_gradients(0, rows, **options)[1]
    assert relative(wanted, g_r) > 0.05  # the penalty has its say: both signs of it would not pass
    assert relative(got, wanted) < 1e-12


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("hvp", "order"), [("fd_central", 2), ("fd_forward", 1)])
def test_finite_differences_converge_to_the_exact_penalty(hvp: str, order: int, model: str) -> None:
    """Halving the distance divides the error by 2^order; the learned variance's detached eps must not spoil
    it."""
    options = MODELS[model]
    rows = tiny_step_rows(family=options.get("family", "dit"))
    g_r = naive_gradients(0, rows, **options)[1]
    wanted = naive_uno(0, rows, **options) - g_r
    radii = (2e-3, 1e-3)
    found = [
        take_step("uno", rows, hvp=hvp, fd_radius=radius, micro_batches=2, **options) - g_r
        for radius in radii
    ]
    errors = [relative(h, wanted) for h in found]
    assert errors[1] < (1e-2 if order == 1 else 2e-4)
    assert abs(errors[0] / errors[1] - 2**order) < 0.2 * 2**order


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("hvp", ["exact", "recompute"])
def test_two_phases_in_float32(seed: int, hvp: str) -> None:
    wanted = naive_uno(seed, tiny_step_rows(seed=seed))
    got = take_step(
        "uno", tiny_step_rows(seed=seed, dtype=torch.float32), seed=seed, hvp=hvp, dtype=torch.float32
    )
    wanted_32 = naive_uno(seed, tiny_step_rows(seed=seed, dtype=torch.float32), dtype=torch.float32)
    assert got.dtype == torch.float32
    assert relative(got, wanted_32) < 1e-5
    assert relative(got, wanted) < 1e-4


@pytest.mark.parametrize("penalty", [0.0, 0.01, 10.0])
def test_penalty_weight(penalty: float) -> None:
    rows = tiny_step_rows()
    got = take_step("uno", rows, settings={"penalty": penalty})
    assert relative(got, naive_uno(0, rows, penalty)) < 1e-12
    if penalty == 0:
        assert torch.equal(got, take_step("exchange", rows))


def test_exchange_weight_scales_the_exchange_term() -> None:
    rows = tiny_step_rows()
    one, four, none = (take_step("exchange", rows, weights=Weights(exchange=w)) for w in (1.0, 4.0, 0.0))
    assert relative(four - none, 4 * (one - none)) < 1e-12
    assert relative(none, take_step("finetune", rows)) < 1e-12


def test_averaging_local_penalties_is_another_algorithm() -> None:
    """cos^2 is not linear: ranks or micro-batches that penalise their own gradients and average give
    something else."""
    rows = tiny_step_rows()
    wanted = naive_uno(0, rows)
    g_r = naive_gradients(0, rows)[1]
    for parts in (2, 4):
        averaged = torch.stack([naive_uno(0, share(rows, rank, parts)) for rank in range(parts)]).mean(0)
        assert relative(averaged - g_r, wanted - g_r) > 0.3


def test_averaging_local_projections_leaves_a_residue_along_the_global_gradient() -> None:
    rows = tiny_step_rows()
    g_f, g_r = naive_gradients(0, rows)
    averaged = torch.stack(
        [project_out(r, f) for f, r in (naive_gradients(0, share(rows, rank, 4)) for rank in range(4))]
    ).mean(0)
    assert abs(cosine(g_f, averaged)) > 0.05
    assert abs(cosine(g_f, take_step("surgery", rows))) < 1e-12
    assert relative(averaged, project_out(g_r, g_f)) > 0.05


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_surgery_is_orthogonal_to_the_global_forget_gradient(dtype: torch.dtype, micro_batches: int) -> None:
    rows = tiny_step_rows(dtype=dtype)
    g_f, g_r = naive_gradients(0, rows, dtype=dtype)
    got = take_step("surgery", rows, dtype=dtype, micro_batches=micro_batches)
    assert abs(cosine(g_f, got)) < 1e-6
    f, r = g_f.double().numpy(), g_r.double().numpy()
    np.testing.assert_allclose(got.numpy(), r - (f @ r) / (f @ f) * f, rtol=1e-4, atol=1e-5 * np.abs(r).max())
    assert got.double().numpy() @ r > 0


def test_uno_s_takes_every_kth_step_for_surgery() -> None:
    rows, settings = tiny_step_rows(), {"penalty": PENALTY, "surgery_every": 3}
    steps = [take_step("uno_s", rows, index=index, settings=settings) for index in range(1, 7)]
    uno, surgery = take_step("uno", rows, settings={"penalty": PENALTY}), take_step("surgery", rows)
    for index, got in enumerate(steps, start=1):
        assert torch.equal(got, surgery if index % 3 == 0 else uno)
