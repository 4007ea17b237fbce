"""Gradient surgery: what is kept is learned only in directions that leave the forget loss alone to first
order."""

from torch import Tensor

from pipeline.unlearning.gradients import Gradients
from pipeline.unlearning.methods.settings import MethodSettings
from pipeline.unlearning.penalty import dots, project_out


def surgery(gradients: Gradients, settings: MethodSettings) -> Tensor:
    """g_r - proj_{g_f} g_r (arXiv 2506.04712, section 3), with global gradients."""
    g_f, g_r = gradients.of("forget", "keep")
    d = dots(g_f, g_r, gradients.total)
    gradients.log["cos"] = d.cos
    return project_out(g_r, g_f, (d.a, d.b))


def surgery_ascent(gradients: Gradients, settings: MethodSettings) -> Tensor:
    """-(g_f - proj_{g_r} g_f) with g_r = grad L_r: ascent on the forget loss that leaves the retain loss
    alone to first order (the authors' surgery_a.py)."""
    g_f, g_r = gradients.of("forget", "retain")
    d = dots(g_f, g_r, gradients.total)
    gradients.log["cos"] = d.cos
    return project_out(g_f, g_r, (d.a, d.c)).neg_()
