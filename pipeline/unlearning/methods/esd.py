"""Erased stable diffusion (Gandikota et al. 2023), label form: steer the forgotten label away from itself."""

from torch import Tensor

from pipeline.unlearning.gradients import Step
from pipeline.unlearning.methods.settings import MethodSettings


def esd(step: Step, settings: MethodSettings) -> Tensor:
    """grad |eps(x_t, t, c) - ((1 + eta) eps_T(x_t, t, null) - eta eps_T(x_t, t, c))|^2 + grad L_r, T the
    frozen base."""
    g_e, g_r = step.gradients("esd", "retain")
    return g_e + g_r
