"""Gradient ascent on the forget loss (A), and ascent in turn with descent on what is kept (A-D)."""

from torch import Tensor

from pipeline.unlearning.gradients import Step
from pipeline.unlearning.methods.settings import MethodSettings


def ascent(step: Step, settings: MethodSettings) -> Tensor:
    """-g_f."""
    return -step.gradient("forget")


def ascent_descent(step: Step, settings: MethodSettings) -> Tensor:
    """Odd steps -g_f, even steps g_r."""
    return -step.gradient("forget") if step.index % 2 else step.gradient("keep")
