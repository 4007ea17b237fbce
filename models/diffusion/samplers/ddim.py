"""Deterministic DDIM (Song et al. 2021, eq. 12 with eta 0)."""

import math

from torch import Tensor

from models.diffusion.path import VariancePreserving
from models.diffusion.respacing import timesteps
from models.diffusion.samplers.settings import Run


def ddim(run: Run[VariancePreserving]) -> Tensor:
    path, settings, x = run.path, run.settings, run.start
    kept = timesteps(path.steps, settings.steps, settings.respacing)
    for index in reversed(range(len(kept))):
        step = kept[index]
        eps = run.ask(x, step, level=step / max(path.steps - 1, 1)).value
        abar = path.alpha_bar[step].item()
        x0 = (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
        if run.clip:
            x0 = x0.clamp(-1, 1)
            eps = (x - math.sqrt(abar) * x0) / math.sqrt(1 - abar)
        following = path.alpha_bar[kept[index - 1]].item() if index else 1.0
        x = math.sqrt(following) * x0 + math.sqrt(1 - following) * eps
    return x
