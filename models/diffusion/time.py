"""The time that a network is given: which values, how training samples them, how measures cut them up."""

from dataclasses import dataclass

import torch
from torch import Tensor

STRETCHES = 1000  # that continuous time is cut into where a measure wants timesteps


@dataclass(frozen=True)
class Discrete:
    """0 (nearly data) to steps - 1 (noise), uniform in training (DDPM)."""

    steps: int = 1000

    def sample(self, generator: torch.Generator) -> Tensor:
        """One timestep () int64."""
        return torch.randint(self.steps, (), generator=generator)

    def bucket(self, t: Tensor, count: Tensor | int) -> Tensor:
        """Which of `count` equal stretches, data first, the times (N,) lie in."""
        return t * count // self.steps

    def within(self, t: Tensor, first: int, last: int) -> Tensor:
        """Times sampled over everything, moved into the timesteps [first, last)."""
        return first + t * (last - first) // self.steps

    def level(self, t: Tensor) -> Tensor:
        """How noisy, in [0, 1]."""
        return t / max(self.steps - 1, 1)

    def stretch(self, first: int, last: int) -> Tensor:
        """The times (last - first,) of the timesteps [first, last)."""
        return torch.arange(first, last)

    def at_least(self, t: Tensor, level: float) -> Tensor:
        """The times (N,), where they are less noisy than `level` its own."""
        return t.clamp(min=round(level * (self.steps - 1)))


@dataclass(frozen=True)
class Continuous:
    """t in [0, 1], given to the network as it is; data lies at t = `data_at`.

    `uniform`, or `logit_normal`: t = sigmoid(m), m ~ N(mean, 1) (Esser et al. 2024, eq. 19).
    """

    data_at: int
    training: str = "uniform"
    mean: float = 0.0
    steps: int = STRETCHES

    def __post_init__(self) -> None:
        if self.training not in ("uniform", "logit_normal"):
            raise ValueError(f"times: got {self.training!r}, expected uniform or logit_normal")

    def sample(self, generator: torch.Generator) -> Tensor:
        """One time () float32."""
        if self.training == "uniform":
            return torch.rand((), generator=generator)
        return self.logit_normal(torch.randn((), generator=generator))

    def logit_normal(self, normal: Tensor) -> Tensor:
        return torch.sigmoid(normal + self.mean)

    def bucket(self, t: Tensor, count: Tensor | int) -> Tensor:
        """Which of `count` equal stretches, data first, the times (N,) lie in."""
        most = torch.as_tensor(count, device=t.device) - 1
        return torch.minimum((self.level(t) * count).long(), most)

    def within(self, t: Tensor, first: int, last: int) -> Tensor:
        """Times sampled over everything, moved into the stretches [first, last) of `steps`, data first."""
        level = (first + self.level(t) * (last - first)) / self.steps
        return self.level(level)

    def level(self, t: Tensor) -> Tensor:
        """How noisy, in [0, 1]; its own inverse."""
        return 1 - t if self.data_at else t

    def stretch(self, first: int, last: int) -> Tensor:
        """The middles (last - first,) of the stretches [first, last), data first."""
        return self.level((torch.arange(first, last) + 0.5) / self.steps)

    def at_least(self, t: Tensor, level: float) -> Tensor:
        """The times (N,), where they are less noisy than `level` its own."""
        return self.level(self.level(t).clamp(min=level))


Time = Discrete | Continuous
