"""The probability-flow ODE of a flow, dx/ds = slope(x, s), from s = 1 (noise) to 0: Euler's and Heun's method
(Karras et al. 2022, algorithm 1). The state is float64, the network is asked in its own precision."""

from itertools import pairwise

import torch
from torch import Tensor

from models.diffusion.path import Flow
from models.diffusion.samplers.settings import Level, Run


def euler(run: Run[Flow]) -> Tensor:
    x = run.start.double()
    for here, then in pairwise(noise_levels(run.settings.steps, run.settings.shift)):
        x = x + (then - here) * slope(run, x, here, within=here)
    return finished(run, x)


def heun(run: Run[Flow]) -> Tensor:
    """The second slope of a step is guided where the first is; the step that reaches the data has one slope
    unless `last_step` is `heun`."""
    x = run.start.double()
    for here, then in pairwise(noise_levels(run.settings.steps, run.settings.shift)):
        first = slope(run, x, here, within=here)
        if then == 0 and run.settings.last_step != "heun":
            return finished(run, x + (then - here) * first)
        second = slope(run, x + (then - here) * first, then, within=here)
        x = x + (then - here) * (first + second) / 2
    return finished(run, x)


def slope(run: Run[Flow], x: Tensor, level: Level, *, within: Level) -> Tensor:
    """dx/ds at the noise level, of all rows or of each (N,), from the velocity dx/dt, guided as at the level
    `within`."""
    t = 1 - level if run.path.data_at else level
    return run.path.sign * run.ask(x, t, level=within).value


def noise_levels(steps: int, shift: float) -> list[float]:
    """From 1 to 0 in `steps` steps; with a shift below 1 they are smaller near the noise (Esser et al. 2024,
    eq. 23, in LightningDiT's form)."""
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if shift:
        t = shift * t / (1 + (shift - 1) * t)
    return (1 - t).tolist()


def finished(run: Run[Flow], x: Tensor) -> Tensor:
    """The last state in the dtype of the first; pixels, which no step holds in bounds, are clipped."""
    return (x.clamp(-1, 1) if run.clip else x).to(run.start.dtype)
