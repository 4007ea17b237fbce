"""What the network's output means and the loss it is trained with. Shape legend: N rows, C channels, H x W.

On the linear path the two are the same up to scale: v - v' = (eps - eps') / (1 - s) at equal x_t, s the noise
level, so eps-error^2 = (1 - s)^2 v-error^2: weights and learning rates do not carry over between the two.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.diffusion.path import Flow, Path, VariancePreserving
from models.diffusion.terms import Anchor, Noise, Prediction


@dataclass(frozen=True)
class Epsilon:
    """The noise and, with `learned_variance`, an interpolation v between the bounds of the reverse
    variance (Nichol & Dhariwal 2021)."""

    learned_variance: bool = False

    def of(self, out: Tensor) -> Prediction:
        if not self.learned_variance:
            return Prediction(out, None)
        eps, v = out.chunk(2, dim=1)
        return Prediction(eps, v)

    def target(self, path: Path, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """What `value` is trained towards."""
        return eps

    def parts(self, path: Path, x_t: Tensor, t: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The x_0 and eps that a predicted `value` takes x_t to be made of."""
        assert isinstance(path, VariancePreserving)
        return path.x0_from_eps(x_t, t, value), value

    def losses(
        self, path: Path, got: Prediction, x0: Tensor, x_t: Tensor, noise: Noise, anchor: Anchor | None
    ) -> Tensor:
        """Mean squared error of eps plus, with a learned variance, the variational bound, (N,). That trains v
        alone: it sees eps detached, or what `anchor` holds."""
        loss = squared_error(got.value, noise.eps)
        if got.variance is None:
            return loss
        assert isinstance(path, VariancePreserving)
        eps = got.value.detach() if anchor is None else anchor.hold(got.value)
        return loss + variational_bound(path, x0, x_t, noise.t, eps, got.variance)

    def distances(self, got: Prediction, target: Prediction) -> Tensor:
        """(N,) from a frozen model's prediction: of eps and of v."""
        loss = squared_error(got.value, target.value)
        if got.variance is None:
            return loss
        assert target.variance is not None
        return loss + squared_error(got.variance, target.variance)


@dataclass(frozen=True)
class Velocity:
    """dx_t / dt (Lipman et al. 2023), by its squared error and, with `direction`, one minus the cosine
    between the channels of either (Yao et al. 2025, LightningDiT)."""

    direction: bool = False
    learned_variance = False

    def of(self, out: Tensor) -> Prediction:
        return Prediction(out, None)

    def target(self, path: Path, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        assert isinstance(path, Flow)
        return path.velocity(x0, t, eps)

    def parts(self, path: Path, x_t: Tensor, t: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(path, Flow)
        return path.parts(x_t, t, value)

    def losses(
        self, path: Path, got: Prediction, x0: Tensor, x_t: Tensor, noise: Noise, anchor: Anchor | None
    ) -> Tensor:
        return self.distances(got, Prediction(self.target(path, x0, noise.t, noise.eps), None))

    def distances(self, got: Prediction, target: Prediction) -> Tensor:
        """(N,) from the velocity or from a frozen model's prediction."""
        loss = squared_error(got.value, target.value)
        if not self.direction:
            return loss
        cosine = F.cosine_similarity(got.value, target.value.to(got.value.dtype), dim=1)  # (N, H, W)
        return loss + (1 - cosine).flatten(1).mean(dim=1)


def squared_error(got: Tensor, target: Tensor) -> Tensor:
    return (got - target.to(got.dtype)).square().flatten(1).mean(dim=1)


def log_variance_of(path: VariancePreserving, v: Tensor, t: Tensor) -> Tensor:
    """Of the reverse step, between its lower and upper bound (Nichol & Dhariwal 2021, eq. 15)."""
    low, high = path.at("posterior_log_variance", t, v), path.at("log_beta", t, v)
    return (v + 1) / 2 * high + (1 - (v + 1) / 2) * low


def variational_bound(
    path: VariancePreserving, x0: Tensor, x_t: Tensor, t: Tensor, eps: Tensor, v: Tensor
) -> Tensor:
    """L_vlb of one timestep in bits per dimension (Nichol & Dhariwal 2021, section 3.1), (N,)."""
    low, log_variance = path.at("posterior_log_variance", t, x_t), log_variance_of(path, v, t)
    true_mean = path.posterior_mean(x0, x_t, t)
    mean = path.posterior_mean(path.x0_from_eps(x_t, t, eps), x_t, t)
    kl = 0.5 * (
        log_variance
        - low
        - 1
        + (low - log_variance).exp()
        + (true_mean - mean).square() * (-log_variance).exp()
    )
    nll = -_discretised_log_likelihood(x0, mean, 0.5 * log_variance)
    bits = torch.where((t == 0).view(-1, 1, 1, 1), nll, kl) / math.log(2)
    return bits.flatten(1).mean(dim=1)


def _discretised_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log P of 8-bit pixels in [-1, 1] under a Gaussian, elementwise (DDPM eq. 13, with the tanh form of the
    normal CDF)."""

    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    inverse = (-log_scale).exp()
    above, below = cdf(inverse * (x - mean + 1 / 255)), cdf(inverse * (x - mean - 1 / 255))
    inner = torch.where(x > 0.999, (1 - below).clamp(min=1e-12).log(), (above - below).clamp(min=1e-12).log())
    return torch.where(x < -0.999, above.clamp(min=1e-12).log(), inner)


Target = Epsilon | Velocity
