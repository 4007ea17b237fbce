"""How images are sampled that a judge sees."""

import operator
from typing import Any, Literal

from pydantic import Field

from pipeline.config.base import Section

Name = Literal["ddim", "ancestral", "euler", "heun", "dopri5", "euler_maruyama", "heun_sde"]


class Sampler(Section):
    """From noise to an image, for a transformer; what is absent stays as the model's own config.json has it.
    Which settings go with which sampler: models/diffusion/samplers/table.py, which a test compares."""

    name: Name | None = Field(None, description="ddim and ancestral of a diffusion, the others of a flow")
    guided_channels: int | Literal["all"] | None = Field(
        None, description="channels that are guided, from the first one on; all: every one"
    )
    guidance_interval: tuple[float, float] | None = Field(
        None, description="noise levels, 0 (data) to 1 (noise), within which there is guidance"
    )
    respacing: Literal["even", "published", "ddim"] | None = Field(
        None,
        description=(
            "ddim, ancestral: which timesteps are visited; published: those of `N` in the published code of"
            " DiT; ddim: of `ddimN` there"
        ),
    )
    variance: Literal["learned", "lower", "upper"] | None = Field(
        None, description="ancestral: variance of a step, the learned one or a bound"
    )
    shift: float | None = Field(
        None, ge=0, description="euler, heun: below 1, smaller steps near the noise; 0: all equal"
    )
    rtol: float | None = Field(
        None, ge=1e-9, description="dopri5, which chooses its steps: relative error of one"
    )
    atol: float | None = Field(None, ge=1e-9, description="dopri5: absolute error of a step")
    diffusion: Literal["sigma", "decreasing"] | None = Field(
        None, description="euler_maruyama, heun_sde: how much noise is added at which level"
    )
    last_step: Literal["mean", "euler", "heun"] | None = Field(
        None, description="euler_maruyama, heun_sde: mean or euler; heun: heun, or absent for one slope"
    )
    last_size: float | None = Field(
        None, gt=0, lt=1, description="euler_maruyama, heun_sde: noise level from which the last step leaves"
    )

    @property
    def changes(self) -> dict[str, Any]:
        """What is given, as a config.json's `sampler` says it."""
        given = self.model_dump(exclude_none=True)
        return {key: None if value == "all" else value for key, value in given.items()}


class Sampling(Section):
    retain_samples: int = Field(20, ge=1, description="images of each class that is kept")
    cfg_scale: float = Field(2.0, ge=0, description="scale of classifier-free guidance")
    final_sampler_steps: int = Field(20, ge=1, description="sampler steps of the images at the end")
    sampler: Sampler | None = Field(
        None, exclude_if=operator.not_, description="another sampler than the model's own"
    )
    batch: int = Field(128, ge=1, description="images sampled at once by a worker")
