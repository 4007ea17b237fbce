"""AdamW over the trained subset, driven by one flat gradient; averaged weights; learning-rate schedule.

P trained parameters.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor, nn

from models.compat import AdamW
from pipeline.unlearning.parameters import unflat


def adamw(
    params: Sequence[nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    scales: Sequence[float] | None = None,
    moments: str = "fp32",
) -> torch.optim.AdamW:
    """AdamW with betas (0.9, 0.99): the second moment settles within the tens of steps that unlearning takes.

    `scales` multiply the learning rate of each parameter (1 without them). `moments`: bf16 keeps them in
    bfloat16 between two steps; a step itself is computed in float32.
    """
    scaled = zip(params, scales or [1.0] * len(params), strict=True)
    # order stays
    groups = [
        {"params": [p for p, _ in part], "scale": scale} for scale, part in groupby(scaled, key=itemgetter(1))
    ]
    optimizer = AdamW(groups, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)
    if moments == "bf16":
        optimizer.register_step_pre_hook(lambda own, *_: _keep_moments(own, torch.float32))
        optimizer.register_step_post_hook(lambda own, *_: _keep_moments(own, torch.bfloat16))
    return optimizer


def _keep_moments(optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> None:
    for state in optimizer.state.values():
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = state[key].to(dtype)


def apply_gradient(
    optimiser: torch.optim.Optimizer,
    params: Sequence[nn.Parameter],
    gradient: Tensor,
    *,
    lr: float,
    clip: float | None,
    norm: float | None = None,
) -> float:
    """One optimiser step along `gradient` (P,), clipped to norm `clip`; returns the norm before clipping,
    which is computed where it is not given."""
    norm = gradient.norm().item() if norm is None else norm
    if clip is not None and norm > clip:
        gradient = gradient * (clip / norm)
    for parameter, part in zip(params, unflat(gradient, params), strict=True):
        parameter.grad = part
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm


def warmup(step: int, *, lr: float, warmup_steps: int) -> float:
    """Linear from lr / warmup_steps at step 1 to lr; 0 at priming steps (step < 1)."""
    if step < 1:
        return 0.0
    return lr * min(1.0, step / warmup_steps) if warmup_steps else lr


def warmup_cosine(step: int, *, lr: float, warmup_steps: int, total: int, floor: float = 0.05) -> float:
    """Linear warm-up, then half a cosine down to floor * lr at step `total`."""
    if step < warmup_steps:
        return lr * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total - warmup_steps)
    return lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Average:
    """Exponential moving average of named parameters; decay 0 follows them exactly."""

    def __init__(self, params: Mapping[str, Tensor], decay: float):
        self.decay = decay
        self.begin(params)

    def begin(self, params: Mapping[str, Tensor]) -> None:
        """Forget all but `params` as they are now."""
        self.values = {name: p.detach().clone() for name, p in params.items()}

    @torch.no_grad()
    def update(self, params: Mapping[str, Tensor]) -> None:
        for name, p in params.items():
            self.values[name].lerp_(p.detach(), 1 - self.decay)
