"""Diffusion transformer with adaLN-Zero (Peebles & Xie 2023, arXiv 2212.09748).

Parameter names and shapes are those of the published checkpoints (facebookresearch/DiT), so their state dicts
load as they are. The label table's last row is the null label of classifier-free guidance. Label dropout is
not here: the caller samples it (it has to come from named seeds) and passes the null label.

Shape legend: N images, C channels, H x W pixels or latents, T tokens, D width.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from models.second_order import attention, gelu, layer_norm


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    patch: int
    width: int
    depth: int
    heads: int
    input_size: int
    channels: int
    num_classes: int
    learn_sigma: bool = False
    label_std: float = 0.02  # small models learn their labels far sooner from a wider start (0.5)
    # None: fixed sine-cosine positions, as published; else learned, from this deviation
    pos_std: float | None = None
    # timestep frequencies 10000^(-k / (128 - shift)): 0 as published, 1 as in diffusers
    frequency_shift: int = 0

    @property
    def tokens(self) -> int:
        return (self.input_size // self.patch) ** 2

    @property
    def null_label(self) -> int:
        return self.num_classes

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def sincos_position(width: int, grid: int) -> Tensor:
    """Fixed 2-D sine-cosine table, (1, grid * grid, width): the first half encodes the column, the second the
    row."""
    frequency = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    row, column = torch.meshgrid(
        torch.arange(grid, dtype=torch.float64), torch.arange(grid, dtype=torch.float64), indexing="ij"
    )
    halves = []
    for coordinate in (column, row):
        angle = coordinate.reshape(-1, 1) * frequency  # (T, D/4)
        halves += [angle.sin(), angle.cos()]
    return torch.cat(halves, dim=1).float().unsqueeze(0)


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()  # (N, T, D)


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int, frequencies: int = 256, shift: int = 0):
        super().__init__()
        self.frequencies, self.shift = frequencies, shift
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = self.frequencies // 2
        rate = torch.exp(
            -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - self.shift)
        )
        angle = t.float().unsqueeze(1) * rate  # (N, half)
        # (N, D)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=1).to(next(self.mlp.parameters()).dtype))


class LabelEmbedder(nn.Module):
    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        """Labels (N,) -> their rows of the table (N, D); embeddings (N, D) pass as they are."""
        return y if y.is_floating_point() else self.embedding_table(y)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.heads, d // self.heads)
        return self.proj(attention(qkv).reshape(n, t, d))  # (N, T, D)


class Norm(nn.Module):
    """Layer norm without scale and shift: adaLN gives both."""

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, 1e-6)


class Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))  # (N, T, D)


class DiTBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = Norm()
        self.attn = Attention(width, heads)
        self.norm2 = Norm()
        self.mlp = Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_a.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_a, scale_a))
        return x + gate_m.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_m, scale_m))  # (N, T, D)


class FinalLayer(nn.Module):
    def __init__(self, width: int, patch: int, channels: int):
        super().__init__()
        self.norm_final = Norm()
        self.linear = nn.Linear(width, patch * patch * channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))  # (N, T, patch * patch * channels)


class DiT(nn.Module):
    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        self.x_embedder = PatchEmbed(config.patch, config.channels, config.width)
        self.t_embedder = TimestepEmbedder(config.width, shift=config.frequency_shift)
        self.y_embedder = LabelEmbedder(config.num_classes, config.width)
        self.pos_embed = nn.Parameter(
            torch.zeros(1, config.tokens, config.width), requires_grad=config.pos_std is not None
        )
        self.blocks = nn.ModuleList(self.new_block() for _ in range(config.depth))
        self.final_layer = self.new_final_layer()

    def new_block(self) -> nn.Module:
        return DiTBlock(self.config.width, self.config.heads)

    def new_final_layer(self) -> nn.Module:
        return FinalLayer(self.config.width, self.config.patch, self.out_channels)

    @property
    def out_channels(self) -> int:
        return self.config.channels * (2 if self.config.learn_sigma else 1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict noise (and, with learn_sigma, the variance interpolation) for x (N, C, H, W), t (N,) and y,
        labels (N,) or embeddings in their place (N, D)."""
        x, c = self.embed(x, t, y)
        for block in self.blocks:
            x = block(x, c)  # (N, T, D)
        return self.unpatchify(self.final_layer(x, c))  # (N, C or 2C, H, W)

    def embed(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (N, T, D) and what they are conditioned on (N, D)."""
        return self.x_embedder(x) + self.pos_embed, self.t_embedder(t) + self.y_embedder(y)

    def unpatchify(self, x: Tensor) -> Tensor:
        p, c = self.config.patch, self.out_channels
        side = self.config.input_size // p
        x = x.reshape(-1, side, side, p, p, c).permute(0, 5, 1, 3, 2, 4)  # (N, C, side, p, side, p)
        return x.reshape(-1, c, side * p, side * p)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """The published initialisation: Xavier linear layers, zeroed adaLN and output, normal (0.02) time and
        label tables."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        if self.config.pos_std is None:
            self.pos_embed.copy_(
                sincos_position(self.config.width, self.config.input_size // self.config.patch)
            )
        else:
            nn.init.normal_(self.pos_embed, std=self.config.pos_std, generator=generator)
        patch = self.x_embedder.proj
        nn.init.xavier_uniform_(patch.weight.view(patch.weight.shape[0], -1), generator=generator)
        assert patch.bias is not None
        nn.init.zeros_(patch.bias)
        nn.init.normal_(
            self.y_embedder.embedding_table.weight, std=self.config.label_std, generator=generator
        )
        for index in (0, 2):
            nn.init.normal_(self.t_embedder.mlp[index].weight, std=0.02, generator=generator)  # type: ignore[arg-type]
        for name, parameter in self.named_parameters():
            if "adaLN_modulation" in name or name.startswith("final_layer.linear"):
                nn.init.zeros_(parameter)


Config = TypeVar("Config", bound=DiTConfig)
# width, depth, heads
PUBLISHED = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}

SIZES: dict[str, DiTConfig] = {
    "DiT-tiny": DiTConfig(
        patch=2,
        width=64,
        depth=3,
        heads=4,
        input_size=8,
        channels=1,
        num_classes=10,
        label_std=0.5,
        pos_std=0.5,
    ),
    "DiT-mini": DiTConfig(
        patch=4,
        width=96,
        depth=6,
        heads=4,
        input_size=28,
        channels=1,
        num_classes=10,
        label_std=0.5,
        pos_std=0.5,
    ),
    "DiT-lite": DiTConfig(
        patch=4,
        width=192,
        depth=6,
        heads=3,
        input_size=32,
        channels=3,
        num_classes=10,
        label_std=0.5,
        frequency_shift=1,
    ),
    "DiT-small": DiTConfig(
        patch=2,
        width=384,
        depth=12,
        heads=6,
        input_size=32,
        channels=3,
        num_classes=10,
        label_std=0.5,
        frequency_shift=1,
    ),
    "DiT-nano": DiTConfig(
        patch=2, width=32, depth=2, heads=2, input_size=4, channels=4, num_classes=1000, learn_sigma=True
    ),
} | {
    f"DiT-{name}/{patch}": DiTConfig(
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        input_size=32,
        channels=4,
        num_classes=1000,
        learn_sigma=True,
    )
    for name, (width, depth, heads) in PUBLISHED.items()
    for patch in (2, 4, 8)
}


def dit_config(size: str, **overrides: Any) -> DiTConfig:
    """The named size with `overrides` (input_size, channels, num_classes, learn_sigma, ...)."""
    return sized(SIZES, size, overrides)


def sized(sizes: Mapping[str, Config], size: str, overrides: Mapping[str, Any]) -> Config:
    """A size of a table, changed. Raises `ValueError` for one that it lacks or whose patches do not fit."""
    if size not in sizes:
        raise ValueError(f"model.size: got {size!r}, expected one of {', '.join(sizes)}")
    config = replace(sizes[size], **overrides)
    if config.input_size % config.patch:
        raise ValueError(
            f"{size}: images of {config.input_size} pixels cannot be cut into patches of {config.patch};"
            " choose another model.size"
        )
    return config
