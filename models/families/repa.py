"""REPA (Yu et al. 2025): SiT with data at t = 0 and heads that project a block's tokens onto an image
encoder's features. The projectors are part of the state dict; they serve training from scratch alone."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from models.dit import DiTConfig, sized
from models.families import sit
from models.families.sit import SiT, SiTModel


@dataclass(frozen=True, kw_only=True)
class REPAConfig(DiTConfig):
    encoder_widths: tuple[int, ...] = (768,)  # of DINOv2-B: one projector an encoder
    projector_width: int = 2048
    encoder_depth: int = 8  # the block after which tokens are projected


# the published S models cannot be run: their head has another width
SIZES = {
    name.replace("SiT", "REPA"): REPAConfig(**(asdict(config) | {"learn_sigma": False}))
    for name, config in sit.SIZES.items()
    if config.num_classes == 1000 and not name.startswith("SiT-S")
}


class REPA(SiT):
    config: REPAConfig

    def __init__(self, config: REPAConfig):
        super().__init__(config)
        self.projectors = nn.ModuleList(
            nn.Sequential(
                nn.Linear(config.width, config.projector_width),
                nn.SiLU(),
                nn.Linear(config.projector_width, config.projector_width),
                nn.SiLU(),
                nn.Linear(config.projector_width, width),
            )
            for width in config.encoder_widths
        )

    def projections(self, x: Tensor, t: Tensor, y: Tensor) -> list[Tensor]:
        """One (N, T, E) for each encoder."""
        x, c = self.embed(x, t, y)
        for block in self.blocks[: self.config.encoder_depth]:
            x = block(x, c)
        return [project(x) for project in self.projectors]


class REPAModel(SiTModel):
    family = "repa"
    sizes: ClassVar[Collection[str]] = SIZES
    trained: ClassVar[Mapping[str, Any]] = {"path": "linear", "data_at": 0, "times": "uniform"}
    published: ClassVar[Mapping[str, Any]] = {
        "name": "euler_maruyama",
        "steps": 250,
        "cfg_scale": 1.8,
        "guidance_interval": [0.0, 0.7],
    }
    black = 127.5

    @classmethod
    def architecture_of(cls, size: str, **changes: Any) -> REPAConfig:
        if "encoder_widths" in changes:
            changes["encoder_widths"] = tuple(changes["encoder_widths"])
        return sized(SIZES, size, changes)

    @staticmethod
    def network(architecture: REPAConfig) -> nn.Module:
        return REPA(architecture)
