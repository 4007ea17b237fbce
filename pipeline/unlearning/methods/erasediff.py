"""EraseDiff (Wu et al. 2024, arXiv 2401.05779): bi-level; what is forgotten shall predict uniform noise, as
far as that does not hurt what is retained."""

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from models.families.transformer import Transformer
from pipeline.unlearning.gradients import Gradients
from pipeline.unlearning.methods.preparation import Tools
from pipeline.unlearning.methods.settings import MethodSettings
from pipeline.unlearning.noising import Rows
from pipeline.unlearning.penalty import TINY, dot


class EraseDiffSettings(MethodSettings):
    eta: float = Field(
        0.1, ge=0, description="share of its own descent that the forgetting keeps against L_r (BOME's eta)"
    )
    weight: float | None = Field(
        None, ge=0, description="a fixed weight of the forgetting instead, such as the code's 0.1"
    )


def uniform_noise_loss(tools: Tools, part: Rows) -> Tensor:
    """|u - eps(a x0 + s u, t, c)|^2 with u uniform in [0, 1], on the prediction alone (eps; of a flow the
    velocity that leads to u), ().

    u is the row's normal noise through its own distribution function.
    """
    model, u = tools.model, torch.special.ndtr(part.noise.eps).to(part.x0)
    assert isinstance(model, Transformer)
    student = model.predict(model.net, part.x0, part.y, replace(part.noise, eps=u)).value
    process = model.diffusion
    target = process.prediction.target(process.path, part.x0, part.noise.t, u)
    return (student.to(u.dtype) - target).square().mean()


def erasediff(gradients: Gradients, settings: EraseDiffSettings) -> Tensor:
    """g_r + lambda g_u with lambda = max(0, eta - g_r.g_u / |g_u|^2) (its algorithm 1, after BOME).

    The inner minimum over K steps is a constant whose gradient is stopped: it moves nothing and is left out.
    """
    g_u, g_r = gradients.of("erasediff", "retain")
    weight: float | Tensor | None = settings.weight
    if weight is None:
        product, square = dot(g_r, g_u, gradients.total), dot(g_u, g_u, gradients.total)
        weight = (settings.eta - product / (square + TINY)).clamp(min=0)
    gradients.log["weight/erasediff"] = weight
    return gradients.sum_of(forget=weight * g_u, retain=g_r)
