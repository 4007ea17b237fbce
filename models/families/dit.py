"""DiT (Peebles & Xie 2023): Gaussian diffusion, noise and, as published, a learned variance."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from models.diffusion import Diffusion, gaussian
from models.dit import SIZES, DiT, DiTConfig, dit_config
from models.families.transformer import Transformer, square_side


class DiTModel(Transformer):
    """Class-conditional DiT with Gaussian diffusion."""

    sizes: ClassVar[Collection[str]] = SIZES
    published: ClassVar[Mapping[str, Any]] = {
        "name": "ancestral",
        "steps": 250,
        "respacing": "published",
        "cfg_scale": 1.5,
        "guided_channels": 3,
    }

    @classmethod
    def architecture_of(cls, size: str, **changes: Any) -> DiTConfig:
        return dit_config(size, **changes)

    @staticmethod
    def network(architecture: DiTConfig) -> nn.Module:
        return DiT(architecture)

    def process(self, config: Mapping[str, Any]) -> Diffusion:
        return gaussian(config["schedule"], config["timesteps"], learn_sigma=self.architecture.learn_sigma)

    @staticmethod
    def describe(
        size: str, *, shape: Sequence[int], class_names: Sequence[str], **options: Any
    ) -> dict[str, Any]:
        return dit_description(
            size, shape=shape, num_classes=len(class_names), class_names=class_names, **options
        )


def dit_description(
    size: str,
    *,
    shape: Sequence[int],
    num_classes: int,
    class_names: Sequence[str],
    latent: bool = False,
    schedule: str | None = None,
    learn_sigma: bool | None = None,
    sampler: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The config.json of a DiT of `size` for rows of `shape` (C, H, W): all that `build` needs beside the
    weights."""
    architecture = {
        "input_size": square_side(shape),
        "channels": shape[0],
        "num_classes": num_classes,
    }
    if learn_sigma is not None:
        architecture["learn_sigma"] = learn_sigma
    dit_config(size, **architecture)
    return {
        "family": "dit",
        "size": size,
        "architecture": architecture,
        "schedule": schedule or ("linear" if latent else "cosine"),
        "timesteps": 1000,
        "clip_samples": not latent,
        "class_names": list(class_names),
        "sampler": sampler or {"cfg_scale": 2.0, "steps": 20},
    }
