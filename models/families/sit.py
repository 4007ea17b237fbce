"""SiT (Ma et al. 2024): DiT's network and state dict, trained as a flow. Data lies at t = 1; the network
learns the velocity x_0 - eps on the linear path. Published heads have room for a variance, never used."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from models import dit
from models.diffusion import Diffusion, flow
from models.dit import DiT, DiTConfig, sized
from models.families.transformer import Transformer, square_side

# those of DiT under the family's own name: the papers took them over
SIZES = {
    name.replace("DiT", "SiT"): config
    for name, config in dit.SIZES.items()
    if config.frequency_shift == 0  # as published
}


class SiT(DiT):
    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The velocity (N, C, H, W) at times t (N,) in [0, 1]."""
        return super().forward(x, t, y)[:, : self.config.channels]


class SiTModel(Transformer):
    """A flow; what follows it in config.json is the family's unless a config.json says otherwise."""

    family = "sit"
    sizes: ClassVar[Collection[str]] = SIZES
    trained: ClassVar[Mapping[str, Any]] = {"path": "linear", "data_at": 1, "times": "uniform"}
    published: ClassVar[Mapping[str, Any]] = {
        "name": "euler_maruyama",
        "steps": 250,
        "cfg_scale": 1.5,
        "guided_channels": 3,
    }

    @classmethod
    def architecture_of(cls, size: str, **changes: Any) -> DiTConfig:
        return sized(SIZES, size, changes)

    @staticmethod
    def network(architecture: Any) -> nn.Module:
        return SiT(architecture)

    def process(self, config: Mapping[str, Any]) -> Diffusion:
        kind, options = config["path"], {key: config[key] for key in ("times", "direction") if key in config}
        return flow(kind, data_at=config["data_at"], **options)

    @classmethod
    def describe(
        cls,
        size: str,
        *,
        shape: Sequence[int],
        class_names: Sequence[str],
        **options: Any,
    ) -> dict[str, Any]:
        """The config.json of a model of `size`. Options: `latent`, `sampler`, and `architecture`, what the
        weights have beside the rows' shape and the classes."""
        latent, sampler = options.pop("latent", False), options.pop("sampler", None)
        changes = {
            "input_size": square_side(shape),
            "channels": shape[0],
            "num_classes": len(class_names),
            **options.pop("architecture", {}),
        }
        assert not options, options
        cls.architecture_of(size, **changes)
        return {
            "family": cls.family,
            "size": size,
            "architecture": changes,
            **cls.trained,
            "clip_samples": not latent,
            "class_names": list(class_names),
            "sampler": dict(sampler or {"cfg_scale": 2.0, "steps": 20}),
        }
