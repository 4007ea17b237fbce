"""The probability-flow ODE of a flow, dx/ds = slope(x, s), from s = 1 (noise) to 0: Euler's and Heun's method
(Karras et al. 2022, algorithm 1). The state is float64, the network is asked in its own precision."""

from itertools import pairwise

import torch
from torch import Tensor

from models.diffusion.path import Flow
from models.diffusion.samplers.settings import Fresh, Guided, SamplerSettings
from models.diffusion.time import Continuous


def euler(
    path: Flow,
    time: Continuous,
    ask: Guided,
    start: Tensor,
    settings: SamplerSettings,
    *,
    clip: bool,
    fresh: Fresh,
) -> Tensor:
    x = start.double()
    levels = noise_levels(settings.steps, settings.shift)
    for here, then in pairwise(levels):
        x = x + (then - here) * slope(path, ask, x, here, within=here)
    return finished(x, start, clip)


def heun(
    path: Flow,
    time: Continuous,
    ask: Guided,
    start: Tensor,
    settings: SamplerSettings,
    *,
    clip: bool,
    fresh: Fresh,
) -> Tensor:
    """The second slope of a step is guided where the first is; the step that reaches the data has one slope
    unless `last_step` is `heun`."""
    x = start.double()
    levels = noise_levels(settings.steps, settings.shift)
    for here, then in pairwise(levels):
        first = slope(path, ask, x, here, within=here)
        if then == 0 and settings.last_step != "heun":
            return finished(x + (then - here) * first, start, clip)
        second = slope(path, ask, x + (then - here) * first, then, within=here)
        x = x + (then - here) * (first + second) / 2
    return finished(x, start, clip)


def slope(path: Flow, ask: Guided, x: Tensor, level: float, *, within: float) -> Tensor:
    """dx/ds at the noise level, from the velocity dx/dt, guided as at the level `within`."""
    t = 1 - level if path.data_at else level
    return path.sign * ask(x, t, level=within).value


def noise_levels(steps: int, shift: float) -> list[float]:
    """From 1 to 0 in `steps` steps; with a shift below 1 they are smaller near the noise (Esser et al. 2024,
    eq. 23, in LightningDiT's form)."""
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if shift:
        t = shift * t / (1 + (shift - 1) * t)
    return (1 - t).tolist()


def finished(x: Tensor, start: Tensor, clip: bool) -> Tensor:
    """The last state in the dtype of the first; `clip` for pixels, which no step holds in bounds."""
    return (x.clamp(-1, 1) if clip else x).to(start.dtype)
