"""Deterministic DDIM (Song et al. 2021, eq. 12 with eta 0)."""

import math

from torch import Tensor

from models.diffusion.path import VariancePreserving
from models.diffusion.respacing import timesteps
from models.diffusion.samplers.settings import Fresh, Guided, SamplerSettings
from models.diffusion.time import Discrete


def ddim(
    path: VariancePreserving,
    time: Discrete,
    ask: Guided,
    start: Tensor,
    settings: SamplerSettings,
    *,
    clip: bool,
    fresh: Fresh,
) -> Tensor:
    """`clip` holds the estimate of x_0 in [-1, 1] (pixels; latents are not bounded)."""
    kept = timesteps(time.steps, settings.steps, settings.respacing)
    x = start
    for index in reversed(range(len(kept))):
        step = kept[index]
        eps = ask(x, step, level=step / max(time.steps - 1, 1)).value
        abar = path.alpha_bar[step].item()
        x0 = (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
        if clip:
            x0 = x0.clamp(-1, 1)
            eps = (x - math.sqrt(abar) * x0) / math.sqrt(1 - abar)
        following = path.alpha_bar[kept[index - 1]].item() if index else 1.0
        x = math.sqrt(following) * x0 + math.sqrt(1 - following) * eps
    return x
