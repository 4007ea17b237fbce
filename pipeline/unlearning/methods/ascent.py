"""Gradient ascent on the forget loss (A), and ascent in turn with descent on what is kept (A-D)."""

from torch import Tensor

from pipeline.unlearning.gradients import Gradients
from pipeline.unlearning.methods.settings import MethodSettings


def ascent(gradients: Gradients, settings: MethodSettings) -> Tensor:
    """-g_f."""
    (g_f,) = gradients.of("forget")
    return -g_f


def ascent_descent(gradients: Gradients, settings: MethodSettings) -> Tensor:
    """Odd steps -g_f, even steps g_r."""
    if gradients.index % 2:
        return ascent(gradients, settings)
    (g_r,) = gradients.of("keep")
    return g_r
