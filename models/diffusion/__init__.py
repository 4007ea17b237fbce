"""Diffusion and flow models apart from their networks: path, prediction, time, guidance, samplers."""

from models.diffusion.process import Diffusion, flow, gaussian
from models.diffusion.samplers.settings import SamplerSettings
from models.diffusion.terms import Anchor, Net, Noise, Prediction

__all__ = [
    "Anchor",
    "Diffusion",
    "Net",
    "Noise",
    "Prediction",
    "SamplerSettings",
    "flow",
    "gaussian",
]
