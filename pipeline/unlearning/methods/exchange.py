"""The exchange loss without a penalty: UNO with lambda 0, the baseline every other method has to beat."""

from torch import Tensor

from pipeline.unlearning.gradients import Step
from pipeline.unlearning.methods.settings import MethodSettings


def exchange(step: Step, settings: MethodSettings) -> Tensor:
    """grad (L_r + L_x)."""
    return step.gradient("keep")
