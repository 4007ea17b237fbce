"""Fine-tuning on the retain rows alone: the control."""

from torch import Tensor

from pipeline.unlearning.gradients import Step
from pipeline.unlearning.methods.settings import MethodSettings


def finetune(step: Step, settings: MethodSettings) -> Tensor:
    """grad L_r."""
    return step.gradient("retain")
