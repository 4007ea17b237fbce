"""Fine-tuning on the retain rows alone: the control."""

from torch import Tensor

from pipeline.unlearning.settings import MethodSettings
from pipeline.unlearning.step import Step


def finetune(step: Step, settings: MethodSettings) -> Tensor:
    """grad L_r."""
    return step.gradient("retain")
