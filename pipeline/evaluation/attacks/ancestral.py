"""Stochastic sampling: another sampler than the one a run is judged with. DDPM's on a subset of the
timesteps; for flows the SDE."""

import copy
import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from models.diffusion.path import Flow
from models.families.transformer import Transformer
from pipeline.seeding import generator

GUIDANCE = ("guided_channels", "guidance_interval")


@torch.no_grad()
def ancestral(
    model: Transformer, *, labels: Tensor, seeds: Sequence[int], cfg_scale: float, steps: int
) -> Tensor:
    """Rows (N, C, H, W): row k depends on labels[k] and seeds[k] only. The reverse step of DDPM (eq. 7,
    variance beta tilde) between `steps` timesteps, which is DDIM with eta 1 (Song et al. 2021, eq. 12 and
    16)."""
    diffusion, net, path = model.diffusion, model.net, model.diffusion.path
    if isinstance(path, Flow):
        own = model.config.get("sampler", {})
        sde = {"name": "euler_maruyama"} | {key: own[key] for key in GUIDANCE if key in own}
        return model.sample(labels=labels, seeds=seeds, cfg_scale=cfg_scale, steps=steps, sampler=sde)
    device = next(net.parameters()).device
    noise = [generator(seed, "ancestral") for seed in seeds]
    y, null = labels.to(device), torch.full_like(labels, model.null_label).to(device)

    def fresh() -> Tensor:
        return torch.stack([torch.randn(model.shape, generator=g) for g in noise]).to(device)

    times = torch.linspace(diffusion.time.steps - 1, 0, steps).round().long().tolist()
    x = fresh()
    for index, step in enumerate(times):
        t = torch.full((len(x),), step, device=device)
        both = diffusion.predict(net, torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null])).value
        conditional, unconditional = both.chunk(2)
        eps = unconditional + cfg_scale * (conditional - unconditional)
        here = path.alpha_bar[step].item()
        then = path.alpha_bar[times[index + 1]].item() if index + 1 < len(times) else 1.0
        x0 = (x - math.sqrt(1 - here) * eps) / math.sqrt(here)
        if model.clip:
            x0 = x0.clamp(-1, 1)
            eps = (x - math.sqrt(here) * x0) / math.sqrt(1 - here)
        variance = (1 - then) / (1 - here) * (1 - here / then)
        x = math.sqrt(then) * x0 + math.sqrt(max(0.0, 1 - then - variance)) * eps
        if then < 1:
            x = x + math.sqrt(variance) * fresh()
    return x


def with_ancestral_sampler(model: Transformer) -> Transformer:
    """The same weights, sampled so."""
    twin = copy.copy(model)
    twin.sample = partial(ancestral, model)  # type: ignore[method-assign]
    return twin
