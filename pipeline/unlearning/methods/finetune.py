"""Fine-tuning on the retain rows alone: the control."""

from torch import Tensor

from pipeline.unlearning.gradients import Gradients
from pipeline.unlearning.methods.settings import MethodSettings


def finetune(gradients: Gradients, settings: MethodSettings) -> Tensor:
    """grad L_r."""
    (g_r,) = gradients.of("retain")
    return g_r
