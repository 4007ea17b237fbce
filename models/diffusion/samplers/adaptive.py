"""The probability-flow ODE of a flow by the Runge-Kutta pair of Dormand & Prince (1980), which chooses its
own steps: SiT's published ODE figures are made with it, at rtol 1e-3 and atol 1e-6.

Steps, the first one included, are chosen as in Hairer, Norsett & Wanner (1993), section II.4, and in
torchdiffeq, but for every row by itself: it does not depend on those beside it, but for a matrix product's
rounding, which the choice of steps makes as large as the tolerance. `steps` is not looked at.
N rows, C channels, H x W; state and slopes (N, C, H, W), noise levels and steps (N,), all float64.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.diffusion.path import Flow
from models.diffusion.samplers.ode import finished, slope
from models.diffusion.samplers.settings import Run

NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),  # of fifth order: the step itself
)
FOURTH = (5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
ERROR = tuple(fifth - fourth for fifth, fourth in zip((*STAGES[-1], 0), FOURTH, strict=True))
SAFETY, SMALLEST, LARGEST = 0.9, 0.2, 10.0  # factors from one step to the next
SHORTEST = 1e-4  # a step that is taken whatever its error


def dopri5(run: Run[Flow]) -> Tensor:
    x = run.start.double()
    level = torch.ones(len(x), dtype=x.dtype, device=x.device)
    first = _slope(run, x, level)
    step = _first_step(run, x, level, first)
    while (level > 0).any():
        step = torch.minimum(step, level)  # 0 for rows that are at the data
        slopes = [first]
        for node, weights in zip(NODES, STAGES, strict=True):
            then = x - _wide(step) * _sum(weights, slopes)
            slopes.append(_slope(run, then, (level - node * step).clamp(min=0)))
        error = _norm(run, _wide(step) * _sum(ERROR, slopes), torch.maximum(x.abs(), then.abs()))
        lost = error.isnan()  # no step makes a number of it
        taken = (error <= 1) | (step <= SHORTEST) | lost
        x, first = (torch.where(_wide(taken), new, old) for new, old in ((then, x), (slopes[-1], first)))
        level = torch.where(taken, level - step, level).masked_fill(lost, 0)
        factor = (SAFETY * error.pow(-1 / 5)).clamp(SMALLEST, LARGEST)
        step = (step * torch.where(error < 1, factor.clamp(min=1), factor)).clamp(min=SHORTEST)
    return finished(run, x)


def _slope(run: Run[Flow], x: Tensor, level: Tensor) -> Tensor:
    return slope(run, x, level, within=level).double()


def _first_step(run: Run[Flow], x: Tensor, level: Tensor, first: Tensor) -> Tensor:
    size, rate = _norm(run, x, x.abs()), _norm(run, first, x.abs())
    trial = torch.where((size < 1e-5) | (rate < 1e-5), 1e-6, 0.01 * size / rate)
    change = _slope(run, x - _wide(trial) * first, level - trial) - first
    curvature = torch.maximum(rate, _norm(run, change, x.abs()) / trial)
    step = torch.where(curvature <= 1e-15, 1e-3 * trial, (0.01 / curvature).pow(1 / 5))
    return torch.minimum(100 * trial, step).nan_to_num(nan=SHORTEST).clamp(min=SHORTEST)


def _sum(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    return torch.stack([weight * one for weight, one in zip(weights, slopes, strict=True) if weight]).sum(0)


def _norm(run: Run[Flow], values: Tensor, scale: Tensor) -> Tensor:
    """(N,): root mean square of `values` in units of what is tolerated where the state is `scale`."""
    tolerated = run.settings.atol + run.settings.rtol * scale
    return (values / tolerated).square().flatten(1).mean(1).sqrt()


def _wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
