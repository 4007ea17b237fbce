"""Erased stable diffusion (Gandikota et al. 2023), label form: steer the forgotten label away from itself."""

import torch
from pydantic import Field
from torch import Tensor

from models.diffusion import Prediction
from models.generative import GenerativeModel
from pipeline.unlearning.gradients import Gradients
from pipeline.unlearning.methods.settings import MethodSettings
from pipeline.unlearning.noising import Rows
from pipeline.unlearning.teacher import Teacher


class EsdSettings(MethodSettings):
    eta: float = Field(3.0, ge=0, description="how far the forgotten label is steered away from itself")


def esd(gradients: Gradients, settings: EsdSettings) -> Tensor:
    """grad L_esd + grad L_r."""
    g_e, g_r = gradients.of("esd", "retain")
    return g_e + g_r


def esd_loss(model: GenerativeModel, part: Rows, *, teacher: Teacher, settings: EsdSettings) -> Tensor:
    """L_esd on forget rows, ():
    |eps(x_t, t, c) - ((1 + eta) eps_T(x_t, t, null) - eta eps_T(x_t, t, c))|^2, T the frozen base."""
    null = teacher.predict(part, torch.full_like(part.y, model.null_label))
    own = teacher.predict(part, part.y)
    target = Prediction((1 + settings.eta) * null.value - settings.eta * own.value, own.variance)
    return model.losses(model.net, part.x0, part.y, part.noise, target=target).mean()
