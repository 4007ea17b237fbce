"""Gradient ascent on the forget loss (A), and ascent in turn with descent on what is retained (A-D)."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from pipeline.unlearning.gradients import Gradients
from pipeline.unlearning.methods.settings import MethodSettings
from pipeline.unlearning.penalty import project_out


class AscentDescentSettings(MethodSettings):
    first: Literal["descent", "ascent"] = Field(
        "descent", description="the odd steps; UNO's authors: descent on ImageNet, ascent for the VAEs"
    )
    project: bool = Field(
        False,
        description="descent along g_r less its component along g_f, as UNO's authors do for the VAEs",
    )


def ascent(gradients: Gradients, settings: MethodSettings) -> Tensor:
    """-g_f."""
    (g_f,) = gradients.of("forget")
    return -g_f


def ascent_descent(gradients: Gradients, settings: AscentDescentSettings) -> Tensor:
    """Odd steps grad L_r, even steps -g_f (arXiv 2506.04712, the authors' ImageNet code), or as `settings`
    say."""
    if (gradients.index % 2 == 1) == (settings.first == "ascent"):
        return gradients.sum_of(forget=ascent(gradients, settings))
    if settings.project:
        g_f, g_r = gradients.of("forget", "retain")
        return gradients.sum_of(retain=project_out(g_r, g_f, total=gradients.total))
    return gradients.sum_of(retain=gradients.of("retain")[0])
