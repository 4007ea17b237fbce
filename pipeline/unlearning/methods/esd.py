"""Erased stable diffusion (Gandikota et al. 2023, arXiv 2303.07345), label form: steer the forgotten label
away from itself, at points that the model samples."""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.diffusion import Noise
from models.families.transformer import Transformer
from pipeline.unlearning.gradients import Gradients
from pipeline.unlearning.methods.preparation import Tools
from pipeline.unlearning.methods.settings import MethodSettings
from pipeline.unlearning.noising import Rows


class EsdSettings(MethodSettings):
    eta: float = Field(1.0, ge=0, description="how far the forgotten label is steered away from itself")
    points: Literal["sampled", "data"] = Field(
        "sampled",
        description=(
            "where: noised images that the student itself samples under the label, or noised rows to forget,"
            " as UNO's authors do"
        ),
    )
    guidance: float = Field(3.0, ge=0, description="points sampled: guidance of the partial sampling")
    sampler_steps: int = Field(50, ge=1, description="points sampled: DDIM steps of a whole sampling")
    retain_weight: float = Field(0.0, ge=0, description="weight of L_r, which the source does not have")


@torch.no_grad()
def partly_sampled(model: Transformer, part: Rows, *, guidance: float, steps: int) -> Rows:
    """`part` with the x0 and eps whose x_t is the student's own at the rows' timesteps: DDIM under the rows'
    labels with guidance, from the rows' noise at the last timestep down to t.

    All rows take all `steps`; where a row's t is reached, a step leaves its x_t as it is.
    """
    process, null, t = model.diffusion, torch.full_like(part.y, model.null_label), part.noise.t
    levels = [1 - k / max(1, steps - 1) for k in range(steps)]
    x0, x = part.x0, part.noise.eps.to(part.x0)  # (N, C, H, W)
    eps = x
    for level, following in zip(levels, (*levels[1:], 0.0), strict=True):
        now = process.time.at_least(t, level)
        both = process.predict(
            model.net, torch.cat([x, x]), torch.cat([now, now]), torch.cat([part.y, null])
        ).value.to(x.dtype)
        conditional, unconditional = both.chunk(2)
        value = unconditional + guidance * (conditional - unconditional)
        x0, eps = process.prediction.parts(process.path, x, now, value)
        if model.clip:
            x0 = x0.clamp(-1, 1)
            eps = process.path.noise_in(x, now, x0)
        x = process.path.noised(x0, process.time.at_least(t, following), eps)
    return replace(part, x0=x0, noise=Noise(t=t, eps=eps))


def esd_loss(tools: Tools, part: Rows) -> Tensor:
    """|eps(x_t, t, c) - (eps_T(x_t, t, null) - eta (eps_T(x_t, t, c) - eps_T(x_t, t, null)))|^2 on the
    prediction alone (eps, or a flow's velocity), T the frozen base (the authors' train-esd.py), ()."""
    model, settings = tools.model, tools.settings
    assert isinstance(model, Transformer) and tools.teacher is not None
    if settings.points == "sampled":
        part = partly_sampled(model, part, guidance=settings.guidance, steps=settings.sampler_steps)
    null = tools.teacher.predict(part, torch.full_like(part.y, model.null_label)).value
    own = tools.teacher.predict(part, part.y).value
    student = model.predict(model.net, part.x0, part.y, part.noise).value.to(part.x0.dtype)
    return (student - (null - settings.eta * (own - null)).to(student)).square().mean()


def esd(gradients: Gradients, settings: EsdSettings) -> Tensor:
    """grad L_esd, with `retain_weight` grad L_r where there is one."""
    if settings.retain_weight == 0:
        return gradients.of("esd")[0]
    g_e, g_r = gradients.of("esd", "retain")
    return gradients.sum_of(forget=g_e, retain=settings.retain_weight * g_r)
