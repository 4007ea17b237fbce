"""How images are sampled that a judge sees."""

from pydantic import Field

from pipeline.config.base import Section


class Sampling(Section):
    retain_samples: int = Field(20, ge=1, description="images of each class that is kept")
    cfg_scale: float = Field(2.0, ge=0, description="scale of classifier-free guidance")
    final_sampler_steps: int = Field(20, ge=1, description="sampler steps of the images at the end")
    batch: int = Field(128, ge=1, description="images sampled at once by a worker")
