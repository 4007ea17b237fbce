"""The reverse SDE of a flow (Ma et al. 2024, SiT, eq. 6): dx = (slope - w score) ds + sqrt(2 w) dW, with any
w(s) >= 0, by Euler-Maruyama or with noise first and then a step of Heun's method. The state is float64.

score = -eps / b(s), of the guided slope. Equal steps go from s = 1 to `last_size`; the last is without noise.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from models.diffusion.path import Flow
from models.diffusion.samplers.ode import finished, slope
from models.diffusion.samplers.settings import Fresh, Guided, SamplerSettings
from models.diffusion.time import Continuous

FORMS = {
    "sigma": lambda s: s,  # SiT's command line, and REPA's
    "decreasing": lambda s: 0.25 * (math.cos(math.pi * (1 - s)) + 1) ** 2,
}

OWN = {"diffusion": tuple(FORMS), "last_step": ("mean", "euler"), "last_size": None}


def euler_maruyama(
    path: Flow,
    time: Continuous,
    ask: Guided,
    start: Tensor,
    settings: SamplerSettings,
    *,
    clip: bool,
    fresh: Fresh,
) -> Tensor:
    return _solve(path, ask, start, settings, fresh, clip=clip, heun=False)


def heun_sde(
    path: Flow,
    time: Continuous,
    ask: Guided,
    start: Tensor,
    settings: SamplerSettings,
    *,
    clip: bool,
    fresh: Fresh,
) -> Tensor:
    return _solve(path, ask, start, settings, fresh, clip=clip, heun=True)


def _solve(
    path: Flow,
    ask: Guided,
    start: Tensor,
    settings: SamplerSettings,
    fresh: Fresh,
    *,
    clip: bool,
    heun: bool,
) -> Tensor:
    form = FORMS[settings.diffusion]

    def drift(x: Tensor, s: float, within: float) -> Tensor:
        velocity = slope(path, ask, x, s, within=within)
        level = torch.tensor(s, dtype=x.dtype, device=x.device)
        _, b, _, _ = path.coefficients(level)
        return velocity + form(s) * path.eps_from(x, velocity, level) / b

    x = start.double()
    levels = torch.linspace(1, settings.last_size, settings.steps, dtype=torch.float64).tolist()
    for here, then in pairwise(levels):
        ds, noise = then - here, math.sqrt(2 * form(here) * (here - then)) * fresh().to(x)
        if not heun:
            x = x + ds * drift(x, here, here) + noise
            continue
        x = x + noise
        first = drift(x, here, here)
        x = x + ds * (first + drift(x + ds * first, then, here)) / 2
    last = levels[-1]
    if settings.last_step == "euler":
        return finished(x - last * slope(path, ask, x, last, within=last), start, clip)
    return finished(x - last * drift(x, last, last), start, clip)
