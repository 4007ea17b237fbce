"""The reverse SDE of a flow (Ma et al. 2024, SiT, eq. 6): dx = (slope - w score) ds + sqrt(2 w) dW, with any
w(s) >= 0 (`sigma`: b(s) itself), by Euler-Maruyama or with noise first and then a step of Heun's method. The
state is float64.

score = -eps / b(s), of the guided slope. Equal steps go from s = 1 to `last_size`; the last is without noise.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from models.diffusion.path import Flow
from models.diffusion.samplers.ode import finished, slope
from models.diffusion.samplers.settings import Run

FORMS: dict[str, Callable[[Flow, float], float]] = {
    # SiT's command line, and REPA's
    "sigma": lambda path, s: float(path.coefficients(torch.tensor(s, dtype=torch.float64))[1]),
    "decreasing": lambda path, s: 0.25 * (math.cos(math.pi * (1 - s)) + 1) ** 2,
}

OWN = {"diffusion": tuple(FORMS), "last_step": ("mean", "euler"), "last_size": None}


def euler_maruyama(run: Run[Flow]) -> Tensor:
    return _solve(run, heun=False)


def heun_sde(run: Run[Flow]) -> Tensor:
    return _solve(run, heun=True)


def _solve(run: Run[Flow], *, heun: bool) -> Tensor:
    settings, form = run.settings, partial(FORMS[run.settings.diffusion], run.path)

    def drift(x: Tensor, s: float, within: float) -> Tensor:
        velocity = slope(run, x, s, within=within)
        level = torch.tensor(s, dtype=x.dtype, device=x.device)
        _, b, _, _ = run.path.coefficients(level)
        return velocity + form(s) * run.path.eps_from(x, velocity, level) / b

    x = run.start.double()
    levels = torch.linspace(1, settings.last_size, settings.steps, dtype=torch.float64).tolist()
    for here, then in pairwise(levels):
        ds, noise = then - here, math.sqrt(2 * form(here) * (here - then)) * run.fresh().to(x)
        if not heun:
            x = x + ds * drift(x, here, here) + noise
            continue
        x = x + noise
        first = drift(x, here, here)
        x = x + ds * (first + drift(x + ds * first, then, here)) / 2
    last = levels[-1]
    if settings.last_step == "euler":
        return finished(run, x - last * slope(run, x, last, within=last))
    return finished(run, x - last * drift(x, last, last))
