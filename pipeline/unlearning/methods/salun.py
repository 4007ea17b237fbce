"""SalUn (Fan et al. 2024): the exchange loss, moved only where the forget loss is most sensitive."""

from pydantic import Field
from torch import Tensor

from pipeline.unlearning.gradients import Gradients
from pipeline.unlearning.methods.settings import MethodSettings


class SalunSettings(MethodSettings):
    saliency: float = Field(0.5, gt=0, le=1, description="share of the trained parameters that move")


def salun(gradients: Gradients, settings: SalunSettings) -> Tensor:
    """grad (L_r + L_x) on the share `saliency` of parameters with the largest |grad L_f| (global) where it is
    not zero; zero elsewhere."""
    g_f, g_r = gradients.of("forget", "keep")
    count = max(1, round(settings.saliency * g_f.numel()))
    saliency = g_f.abs()
    threshold = saliency.kthvalue(saliency.numel() - count + 1).values
    # other labels' rows have no forget gradient: a threshold of 0 is no mask
    return g_r * ((saliency >= threshold) & (saliency > 0))
