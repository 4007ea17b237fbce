"""What a sampler is asked with: config.json's `sampler`, checked, and all that one sampling has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from models.diffusion.guidance import Guidance
from models.diffusion.terms import Prediction

PathT = TypeVar("PathT")


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """`steps` are evaluations of the (guided) network; of Heun's method two each."""

    steps: int
    cfg_scale: float
    name: str | None = None  # of table.py; None: DDIM, or Euler's method on a flow
    guided_channels: int | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    respacing: str = "even"  # see respacing.py
    variance: str | None = (
        None  # ancestral: learned | lower | upper; None: learned where the model learned one
    )
    shift: float = 0.0  # flows: t <- shift t / (1 + (shift - 1) t), t from noise to data; 0: not moved
    diffusion: str = "sigma"  # of the SDE: sigma | decreasing
    last_step: str | None = None  # SDE: mean (also None) | euler; Heun: one slope (None) | heun
    rtol: float = 1e-3  # dopri5: error of a step, relative to the state, that is put up with
    atol: float = 1e-6  # dopri5: the same, absolute
    last_size: float = 0.04  # of the SDE: noise level from which the last step leaves

    @classmethod
    def of(cls, described: Mapping[str, Any], **changes: Any) -> "SamplerSettings":
        """Those of config.json, with `changes`. Raises `ValueError` for an unknown setting."""
        given = {**described, **changes}
        unknown = sorted(set(given) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(
                f"sampler: unknown setting {unknown[0]!r}, expected some of"
                f" {', '.join(field.name for field in fields(cls))}"
            )
        if "guidance_interval" in given:
            low, high = given["guidance_interval"]
            given["guidance_interval"] = (float(low), float(high))
        settings = cls(**given)
        if settings.steps < 1:
            raise ValueError(f"sampler.steps: got {settings.steps}, expected 1 or more")
        _ = settings.guidance  # checks its own settings
        return settings

    @property
    def guidance(self) -> Guidance:
        return Guidance(scale=self.cfg_scale, channels=self.guided_channels, interval=self.guidance_interval)


Level = float | Tensor  # of noise, or a time of the model's: of all rows, or of each (N,)


class Guided(Protocol):
    """The network under guidance, as a sampler asks it: the rows at the model's time `t`."""

    def __call__(self, x: Tensor, t: Level, *, level: Level) -> Prediction: ...


Fresh = Callable[[], Tensor]  # the next standard normal (N, C, H, W)


@dataclass(frozen=True, kw_only=True)
class Run(Generic[PathT]):
    """One sampling, as every sampler is given it. `clip`: pixels, which stay in [-1, 1]; latents are not
    bounded."""

    path: PathT
    ask: Guided
    start: Tensor  # (N, C, H, W) ~ N(0, 1)
    settings: SamplerSettings
    clip: bool
    fresh: Fresh
