"""SalUn (Fan et al. 2024): the exchange loss, moved only where the forget loss is most sensitive."""

from torch import Tensor

from pipeline.unlearning.gradients import Step
from pipeline.unlearning.methods.settings import MethodSettings


def salun(step: Step, settings: MethodSettings) -> Tensor:
    """grad (L_r + L_x) on the share `saliency` of parameters with the largest |grad L_f| (global) where it is
    not zero; zero elsewhere."""
    g_f, g_r = step.gradients("forget", "keep")
    count = max(1, round(settings.saliency * g_f.numel()))
    saliency = g_f.abs()
    threshold = saliency.kthvalue(saliency.numel() - count + 1).values
    # other labels' rows have no forget gradient: a threshold of 0 is no mask
    return g_r * ((saliency >= threshold) & (saliency > 0))
