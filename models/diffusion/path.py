"""Between data and noise: x_t = signal(t) x_0 + noise(t) eps.

`VariancePreserving` has integer timesteps (Ho et al. 2020), `Flow` a continuous time (Lipman et al. 2023; Ma
et al. 2024, SiT). Shape legend: N rows, C channels, H x W, T timesteps.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class VariancePreserving:
    """signal^2 + noise^2 = 1, from the variances `betas` (T,) of single steps.

    Its tables, (T,) float64, are made on the CPU and copied once to every device they are asked for on: a
    loss looks them up there and never waits for the device. They are no part of any state dict.
    """

    def __init__(self, betas: Tensor):
        self.betas, self.steps = betas, len(betas)
        self.alpha_bar = torch.cumprod(1 - betas, dim=0)
        previous = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])
        variance = betas * (1 - previous) / (1 - self.alpha_bar)  # beta tilde, DDPM eq. 7
        # it is 0 at t = 0
        clipped = torch.cat([variance[1:2], variance[1:]]) if len(betas) > 1 else betas
        self._tables = {
            "signal": self.alpha_bar.sqrt(),
            "noise": (1 - self.alpha_bar).sqrt(),
            "log_beta": betas.log(),
            "posterior_log_variance": clipped.log(),
            "upper_log_variance": torch.cat([clipped[:1], betas[1:]]).log(),
            "posterior_mean_x0": betas * previous.sqrt() / (1 - self.alpha_bar),
            "posterior_mean_xt": (1 - previous) * (1 - betas).sqrt() / (1 - self.alpha_bar),
        }
        self._on_device: dict[torch.device, dict[str, Tensor]] = {}

    def at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """Table `name` at the timesteps t (N,), shaped to broadcast over `like` (N, C, H, W), in its dtype
        and on its device, where `t` should lie."""
        if like.device not in self._on_device:
            self._on_device[like.device] = {key: table.to(like.device) for key, table in self._tables.items()}
        table = self._on_device[like.device][name]
        return table[t.to(like.device)].to(like.dtype).view(-1, 1, 1, 1)

    def noised(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (DDPM eq. 4)."""
        return self.at("signal", t, x0) * x0 + self.at("noise", t, x0) * eps

    def x0_from_eps(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return (x_t - self.at("noise", t, x_t) * eps) / self.at("signal", t, x_t)

    def noise_in(self, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """The eps by which x_0 becomes x_t."""
        return (x_t - self.at("signal", t, x_t) * x0) / self.at("noise", t, x_t)

    def posterior_mean(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Of x_{t-1}, given x_t and x_0 (DDPM eq. 7)."""
        return self.at("posterior_mean_x0", t, x_t) * x0 + self.at("posterior_mean_xt", t, x_t) * x_t

    def respaced(self, kept: Sequence[int]) -> "VariancePreserving":
        """The process that visits the ascending timesteps `kept` only: its step i is kept[i] of this one
        (Nichol & Dhariwal 2021, eq. 19)."""
        abar = self.alpha_bar[list(kept)]
        return VariancePreserving(1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]]))


def betas_of(schedule: str, timesteps: int) -> Tensor:
    """(T,) float64: `linear` (DDPM, scaled to T) or `cosine` (Nichol & Dhariwal 2021, eq. 17)."""
    if schedule == "linear":
        scale = 1000 / timesteps
        return torch.linspace(scale * 1e-4, scale * 0.02, timesteps, dtype=torch.float64)
    if schedule == "cosine":
        s = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        abar = ((s + 0.008) / 1.008 * math.pi / 2).cos().square()
        return (1 - abar[1:] / abar[:-1]).clamp(max=0.999)
    raise ValueError(f"schedule: got {schedule!r}, expected linear or cosine")


class Flow:
    """An interpolant over the noise level s in [0, 1], 0 at the data: a(s) x_0 + b(s) eps.

    `linear`: a = 1 - s, b = s (flow matching); `cosine`: a = cos(pi s / 2), b = sin(pi s / 2) (SiT's GVP).
    The model's own time t is s where the data lies at t = 0 (REPA), 1 - s where it lies at t = 1 (SiT).
    """

    def __init__(self, kind: str, data_at: int):
        if kind not in ("linear", "cosine"):
            raise ValueError(f"path: got {kind!r}, expected linear or cosine")
        if data_at not in (0, 1):
            raise ValueError(f"data_at: got {data_at!r}, expected 0 or 1: the time at which a row is data")
        self.kind, self.data_at = kind, data_at

    def level(self, t: Tensor) -> Tensor:
        """The noise level of the model's times, and its own inverse."""
        return 1 - t if self.data_at else t

    @property
    def sign(self) -> int:
        """ds / dt."""
        return -1 if self.data_at else 1

    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """a, b, da/ds, db/ds at noise levels of any shape."""
        if self.kind == "linear":
            return 1 - s, s, -torch.ones_like(s), torch.ones_like(s)
        angle, rate = s * (math.pi / 2), math.pi / 2
        return angle.cos(), angle.sin(), -rate * angle.sin(), rate * angle.cos()

    def noised(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        a, b, _, _ = self.coefficients(self._levels(t, x0))
        return a * x0 + b * eps

    def noise_in(self, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """The eps by which x_0 becomes x_t; t is not where the data lies."""
        a, b, _, _ = self.coefficients(self._levels(t, x_t))
        return (x_t - a * x0) / b

    def parts(self, x_t: Tensor, t: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """The x_0 and eps that x_t and dx_t / dt are made of."""
        a, b, da, db = self.coefficients(self._levels(t, x_t))
        slope, scale = self.sign * velocity, a * db - da * b
        return (db * x_t - b * slope) / scale, (a * slope - da * x_t) / scale

    def velocity(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """dx_t / dt in the model's own time, what its network learns."""
        _, _, da, db = self.coefficients(self._levels(t, x0))
        return self.sign * (da * x0 + db * eps)

    def eps_from(self, x: Tensor, slope: Tensor, s: Tensor) -> Tensor:
        """The noise in x (N, C, H, W), of its `slope` dx/ds at the level s ()."""
        a, b, da, db = self.coefficients(s)
        return (a * slope - da * x) / (a * db - da * b)

    def _levels(self, t: Tensor, like: Tensor) -> Tensor:
        return self.level(t.to(like)).view(-1, 1, 1, 1)


Path = VariancePreserving | Flow
