"""Which samplers there are, for which paths, and what each can be asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from models.diffusion.path import Flow, Path, VariancePreserving
from models.diffusion.prediction import Target
from models.diffusion.samplers import adaptive, ancestral, ddim, ode, sde
from models.diffusion.samplers.settings import Run, SamplerSettings

RESPACINGS = ("even", "published", "ddim")


@dataclass(frozen=True, kw_only=True)
class Sampler:
    solve: Callable[[Run[Any]], Tensor]
    path: type[Any]
    own: Mapping[str, tuple[Any, ...] | None] = field(
        default_factory=dict
    )  # its settings: the choices, if few


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(solve=ddim.ddim, path=VariancePreserving, own={"respacing": RESPACINGS}),
    "ancestral": Sampler(
        solve=ancestral.ancestral,
        path=VariancePreserving,
        own={"respacing": RESPACINGS, "variance": ("learned", *ancestral.FIXED)},
    ),
    "euler": Sampler(solve=ode.euler, path=Flow, own={"shift": None}),
    "heun": Sampler(solve=ode.heun, path=Flow, own={"shift": None, "last_step": ("heun",)}),
    "dopri5": Sampler(solve=adaptive.dopri5, path=Flow, own={"rtol": None, "atol": None}),
    "euler_maruyama": Sampler(solve=sde.euler_maruyama, path=Flow, own=sde.OWN),
    "heun_sde": Sampler(solve=sde.heun_sde, path=Flow, own=sde.OWN),
}
OWN = sorted({name for sampler in SAMPLERS.values() for name in sampler.own})


def sampler_of(settings: SamplerSettings, path: Path, prediction: Target) -> Sampler:
    """The sampler that is named, or the path's first. Raises `ValueError` for one that the path does not have
    and for settings that it does not take."""
    possible = [key for key, sampler in SAMPLERS.items() if isinstance(path, sampler.path)]
    name = settings.name or possible[0]
    if name not in possible:
        kind = "a flow" if isinstance(path, Flow) else "a diffusion"
        raise ValueError(f"sampler.name: got {name!r} for {kind}, expected one of {', '.join(possible)}")
    own, default = SAMPLERS[name].own, SamplerSettings(steps=1, cfg_scale=1)
    for key in OWN:
        value = getattr(settings, key)
        if value == getattr(default, key):
            continue
        if key not in own:
            takes = ", ".join(own)
            raise ValueError(f"sampler.{key}: got {value!r}, which {name} does not take, expected {takes}")
        choices = own[key]
        if choices is not None and value not in choices:
            raise ValueError(f"sampler.{key}: got {value!r}, expected one of {', '.join(map(str, choices))}")
    if settings.variance == "learned" and not prediction.learned_variance:
        raise ValueError("sampler.variance: got learned, which this model did not; expected lower or upper")
    if min(settings.rtol, settings.atol) <= 0:
        raise ValueError(f"sampler: got rtol {settings.rtol} and atol {settings.atol}, expected both above 0")
    if settings.shift < 0 or not 0 < settings.last_size < 1:
        raise ValueError(
            f"sampler: got shift {settings.shift} and last_size {settings.last_size}, expected 0 or more and"
            " between 0 and 1"
        )
    return SAMPLERS[name]


def changed(own: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`own`, the sampler that a config.json describes, with `changes`. Where these name another one, only
    those of its settings stay that this takes as well."""
    sampler = SAMPLERS.get(changes.get("name", own.get("name")))

    def stays(key: str, value: Any) -> bool:
        if sampler is None or key not in OWN:
            return True
        choices = sampler.own.get(key, ())
        return choices is None or value in choices

    return {key: value for key, value in own.items() if stays(key, value)} | dict(changes)
