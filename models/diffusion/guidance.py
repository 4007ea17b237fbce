"""Classifier-free guidance: value = null + scale (conditional - null) (Ho & Salimans 2022).

Published models differ in where: DiT, SiT and LightningDiT guide the first three channels only, REPA all
of them, within an interval of noise levels (Kynkäänniemi et al. 2024).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.diffusion.prediction import Target
from models.diffusion.terms import Net, Prediction


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """`channels`: the first k are guided, the others stay conditional; None: all. `interval`: of noise levels
    (0 data, 1 noise), both ends included, within which there is guidance."""

    scale: float
    channels: int | None = None
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"sampler.guided_channels: got {self.channels}, expected 1 or more, or all")
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"sampler.guidance_interval: got [{low}, {high}], expected two noise levels between 0 (data)"
                " and 1 (noise), the lower first"
            )

    def __call__(
        self, net: Net, kind: Target, x: Tensor, t: Tensor, y: Tensor, null: Tensor, *, level: float | Tensor
    ) -> Prediction:
        """What `net` predicts for x (N, C, H, W) at the times t (N,), guided from `null` to the labels y, in
        x's dtype. `level`: how noisy the rows are, all or each (N,). A learned variance stays conditional."""

        def ask(*inputs: Tensor) -> Prediction:
            return kind.of(net(*inputs).to(x.dtype))

        low, high = self.interval
        within = torch.as_tensor((level >= low) & (level <= high))
        if self.scale == 1 or not within.any():
            return ask(x, t, y)
        both = ask(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null]))
        conditional, unconditional = both.value.chunk(2)
        value = unconditional + self.scale * (conditional - unconditional)
        if self.channels is not None:
            value = torch.cat([value[:, : self.channels], conditional[:, self.channels :]], dim=1)
        if not within.all():
            value = torch.where(within.view(-1, 1, 1, 1), value, conditional)
        return Prediction(value, None if both.variance is None else both.variance.chunk(2)[0])
