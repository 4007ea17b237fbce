"""The ODE solver that chooses its own steps; how much noise the SDE's add."""

import math
from typing import Any

import pytest
import torch
from tiny import tiny_dit
from torch import Tensor

from models.diffusion.path import Flow
from models.diffusion.samplers.sde import FORMS

LABELS, SEEDS = torch.tensor([0, 1, 3]), (3, 4, 5)


def sampled(
    family: str = "sit", rows: slice = slice(None), net: Any = None, **sampler: Any
) -> tuple[Tensor, int]:
    """Images, and how often the network was asked."""
    model, calls = tiny_dit(dtype=torch.float32, family=family, std=0.3), 0

    def counted(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return (net or model.net)(x, t, y)

    model.clip, steps = False, sampler.pop("steps", 1)
    x = model.sample(
        labels=LABELS[rows], seeds=SEEDS[rows], cfg_scale=2.0, steps=steps, net=counted, sampler=sampler
    )
    return x, calls


@torch.no_grad()
def test_it_arrives_where_many_small_steps_do() -> None:
    for family in ("sit", "repa"):
        exact, _ = sampled(family, name="heun", last_step="heun", steps=200)
        close, many = sampled(family, name="dopri5", rtol=1e-6, atol=1e-8)
        default, few = sampled(family, name="dopri5")
        size = exact.abs().max()
        assert (close - exact).abs().max() < 1e-4 * size, family
        assert (default - exact).abs().max() < 1e-2 * size and few < many < 500, (family, few, many)


@torch.no_grad()
def test_a_row_does_not_depend_on_those_beside_it() -> None:
    """To the bit, for a network that has no matrix product, whose rounding goes by the number of rows."""

    def net(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return (10 * t * (1 + y)).sin().view(-1, 1, 1, 1) - x * (1 + y).view(-1, 1, 1, 1)

    images = []
    for interval in ((0.0, 1.0), (0.2, 0.7)):  # guidance that sets in and ends at levels between two steps
        sampler = {"name": "dopri5", "guidance_interval": interval}
        together, _ = sampled(net=net, **sampler)
        for row in range(len(SEEDS)):
            alone, _ = sampled(rows=slice(row, row + 1), net=net, **sampler)
            assert torch.equal(together[row], alone[0])
        images.append(together)
    assert not torch.allclose(*images, atol=1e-3)


@torch.no_grad()
def test_a_slope_that_is_no_number_ends_it() -> None:
    model = tiny_dit(dtype=torch.float32, family="sit")
    x = model.sample(
        labels=LABELS[:1],
        seeds=SEEDS[:1],
        cfg_scale=1.0,
        steps=1,
        net=lambda x, t, y: torch.full_like(x, torch.nan),
        sampler={"name": "dopri5"},
    )
    assert x.isnan().all()


def test_how_much_noise_a_step_adds_is_the_paths() -> None:
    """`sigma` is b(s): s on the straight path, sin(pi s / 2) on the other (SiT's GVP)."""
    assert FORMS["sigma"](Flow("linear", 1), 0.3) == 0.3
    assert FORMS["sigma"](Flow("cosine", 1), 0.3) == pytest.approx(math.sin(0.15 * math.pi), abs=1e-15)
