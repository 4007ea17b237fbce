"""DDPM's stochastic reverse process (Ho et al. 2020, algorithm 2) on a subset of the timesteps (Nichol &
Dhariwal 2021, section 4): what every published DiT figure is made with, at 250 steps and
with the learned variance."""

import torch
from torch import Tensor

from models.diffusion.path import VariancePreserving
from models.diffusion.prediction import log_variance_of
from models.diffusion.respacing import timesteps
from models.diffusion.samplers.settings import Run

FIXED = {"lower": "posterior_log_variance", "upper": "upper_log_variance"}  # beta tilde, beta


def ancestral(run: Run[VariancePreserving]) -> Tensor:
    path, settings, x = run.path, run.settings, run.start
    kept = timesteps(path.steps, settings.steps, settings.respacing)
    respaced = path.respaced(kept)
    for index in reversed(range(len(kept))):
        got = run.ask(x, kept[index], level=kept[index] / max(path.steps - 1, 1))
        here = torch.full((len(x),), index, device=x.device)
        x0 = respaced.x0_from_eps(x, here, got.value)
        if run.clip:
            x0 = x0.clamp(-1, 1)
        if settings.variance in (None, "learned") and got.variance is not None:
            log_variance = log_variance_of(respaced, got.variance, here)
        else:
            log_variance = respaced.at(FIXED[settings.variance or "lower"], here, x)
        x, noise = respaced.posterior_mean(x0, x, here), run.fresh()
        if index:
            x = x + (0.5 * log_variance).exp() * noise
    return x
