"""The exchange loss without a penalty: UNO with lambda 0, the baseline every other method has to beat."""

from torch import Tensor

from pipeline.unlearning.gradients import Gradients
from pipeline.unlearning.methods.settings import MethodSettings


def exchange(gradients: Gradients, settings: MethodSettings) -> Tensor:
    """grad (L_r + L_x)."""
    (g_r,) = gradients.of("keep")
    return g_r
