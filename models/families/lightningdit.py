"""LightningDiT (Yao et al. 2025): a flow over VA-VAE latents with RMSNorm, SwiGLU and rotary positions,
trained at logit-normal times with a cosine term. Data lies at t = 1.

Shape legend: N images, T tokens, D width, d width of a head.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dit import PUBLISHED, DiT, DiTConfig, modulate, sized
from models.families.sit import SiTModel
from models.second_order import attention


@dataclass(frozen=True, kw_only=True)
class LightningDiTConfig(DiTConfig):
    qk_norm: bool = False


SIZES = {
    "LightningDiT-nano": LightningDiTConfig(
        patch=1, width=32, depth=2, heads=2, input_size=4, channels=32, num_classes=1000
    ),
} | {
    f"LightningDiT-{name}/{patch}": LightningDiTConfig(
        patch=patch, width=width, depth=depth, heads=heads, input_size=16, channels=32, num_classes=1000
    )
    for name, (width, depth, heads), patches in (
        ("B", PUBLISHED["B"], (1, 2)),
        ("L", PUBLISHED["L"], (2,)),
        ("XL", PUBLISHED["XL"], (1, 2)),
        ("1p0B", (1536, 24, 24), (1, 2)),
        ("1p6B", (1792, 28, 28), (1, 2)),
    )
    for patch in patches
}


class RMSNorm(nn.Module):
    """x / rms(x), times a weight (Zhang & Sennrich 2019); at least in single precision."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).type_as(x) * self.weight


class SwiGLU(nn.Module):
    """Shazeer 2020; both halves of the first layer in one matrix."""

    def __init__(self, width: int):
        super().__init__()
        hidden = int(2 / 3 * int(4 * width))
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class Rotary(nn.Module):
    """Rotations (T, d) of queries and keys: the first half of a head turns with the row, the second with the
    column (Su et al. 2021, in two dimensions). The tables are part of the state dict."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, width: int, grid: int):
        super().__init__()
        rate = 10000 ** (-torch.arange(0, width // 2, 2, dtype=torch.float32) / (width // 2))  # (d / 4,)
        angle = (torch.arange(grid, dtype=torch.float32)[:, None] * rate).repeat_interleave(2, dim=1)
        rows = angle[:, None, :].expand(-1, grid, -1)  # (grid, grid, d / 2)
        both = torch.cat([rows, rows.transpose(0, 1)], dim=-1).reshape(grid * grid, width)
        self.register_buffer("freqs_cos", both.cos())
        self.register_buffer("freqs_sin", both.sin())

    def forward(self, x: Tensor) -> Tensor:
        """x (N, T, heads, d), neighbours (2k, 2k + 1) being one pair."""
        cos, sin = self.freqs_cos[:, None, :], self.freqs_sin[:, None, :]
        first, second = x[..., 0::2], x[..., 1::2]
        turned = torch.stack([-second, first], dim=-1).flatten(-2)
        return (x * cos + turned * sin).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, *, qk_norm: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, d // self.heads).unbind(2)
        qkv = torch.stack([rotary(self.q_norm(q)), rotary(self.k_norm(k)), v], dim=2)
        return self.proj(attention(qkv).reshape(n, t, d))  # (N, T, D)


class Block(nn.Module):
    def __init__(self, config: LightningDiTConfig):
        super().__init__()
        self.norm1 = RMSNorm(config.width)
        self.attn = Attention(config.width, config.heads, qk_norm=config.qk_norm)
        self.norm2 = RMSNorm(config.width)
        self.mlp = SwiGLU(config.width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 6 * config.width))

    def forward(self, x: Tensor, c: Tensor, rotary: Rotary) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_a.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_a, scale_a), rotary)
        return x + gate_m.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_m, scale_m))  # (N, T, D)


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.norm_final = RMSNorm(width)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class LightningDiT(DiT):
    config: LightningDiTConfig

    def __init__(self, config: LightningDiTConfig):
        super().__init__(config)
        self.feat_rope = Rotary(config.width // config.heads, config.input_size // config.patch)

    def new_block(self) -> nn.Module:
        return Block(self.config)

    def new_final_layer(self) -> nn.Module:
        return FinalLayer(self.config.width, self.config.patch**2 * self.out_channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The velocity (N, C, H, W) at times t (N,) in [0, 1]."""
        x, c = self.embed(x, t, y)
        for block in self.blocks:
            x = block(x, c, self.feat_rope)
        return self.unpatchify(self.final_layer(x, c))


class LightningDiTModel(SiTModel):
    family = "lightningdit"
    per_channel = True
    sizes: ClassVar[Collection[str]] = SIZES
    trained: ClassVar[Mapping[str, Any]] = {
        "path": "linear",
        "data_at": 1,
        "times": "logit_normal",
        "direction": True,
    }
    published: ClassVar[Mapping[str, Any]] = {  # of the 800 epochs; 250 points in time are 249 steps
        "name": "euler",
        "steps": 249,
        "shift": 0.3,
        "cfg_scale": 6.7,
        "guided_channels": 3,
        "guidance_interval": [0.0, 0.875],
    }

    @classmethod
    def architecture_of(cls, size: str, **changes: Any) -> LightningDiTConfig:
        return sized(SIZES, size, changes)

    @staticmethod
    def network(architecture: LightningDiTConfig) -> nn.Module:
        return LightningDiT(architecture)
