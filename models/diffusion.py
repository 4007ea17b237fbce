"""Gaussian diffusion (Ho et al. 2020; Nichol & Dhariwal 2021): schedule, training loss, DDIM with
classifier-free guidance.

The network predicts the noise eps and, with learned sigma, an interpolation v between the two bounds of the
reverse variance. Shape legend: N images, C channels, H x W.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Net = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t, t, y) -> eps (N, C, H, W) or eps and v (N, 2C, H, W)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """All that is random in one evaluation of the loss on N rows; sampled outside, from named seeds."""

    t: Tensor  # (N,) int64 in [0, timesteps)
    eps: Tensor  # (N, C, H, W) standard normal
    posterior: Tensor | None = None  # (N, C, H, W) standard normal, for latents stored as mean and std


@dataclass(frozen=True)
class Prediction:
    """A frozen output to take as target: eps (N, C, H, W) and, with learned sigma, v."""

    eps: Tensor
    v: Tensor | None


class Anchor:
    """Holds the first eps it is given. The variational term takes eps as a constant: where finite differences
    move the parameters within a step, that constant must stay the base point's."""

    def __init__(self) -> None:
        self._eps: Tensor | None = None

    def hold(self, eps: Tensor) -> Tensor:
        if self._eps is None:
            self._eps = eps.detach()
        return self._eps


class Diffusion:
    """The process with `timesteps` steps.

    Its tables, (T,) float64, are made on the CPU and copied once to every device they are asked for on: a
    loss looks them up there and never waits for the device. They are no part of any state dict.
    """

    def __init__(self, schedule: str, timesteps: int = 1000, *, learn_sigma: bool = False):
        self.timesteps = timesteps
        self.learn_sigma = learn_sigma
        self.betas = _betas(schedule, timesteps)
        self.alpha_bar = torch.cumprod(1 - self.betas, dim=0)
        previous = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])
        variance = self.betas * (1 - previous) / (1 - self.alpha_bar)  # beta tilde, DDPM eq. 7
        clipped = torch.cat([variance[1:2], variance[1:]])  # it is 0 at t = 0
        self._tables = {
            "signal": self.alpha_bar.sqrt(),
            "noise": (1 - self.alpha_bar).sqrt(),
            "log_beta": self.betas.log(),
            "posterior_log_variance": clipped.log(),
            "posterior_mean_x0": self.betas * previous.sqrt() / (1 - self.alpha_bar),
            "posterior_mean_xt": (1 - previous) * (1 - self.betas).sqrt() / (1 - self.alpha_bar),
        }
        self._on_device: dict[torch.device, dict[str, Tensor]] = {}

    def at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """Table `name` at the timesteps t (N,), shaped to broadcast over `like` (N, C, H, W), in its dtype
        and on its device, where `t` should lie."""
        if like.device not in self._on_device:
            self._on_device[like.device] = {key: table.to(like.device) for key, table in self._tables.items()}
        table = self._on_device[like.device][name]
        return table[t.to(like.device)].to(like.dtype).view(-1, 1, 1, 1)

    def sample_noise(self, shape: Sequence[int], generator: torch.Generator, *, latent: bool) -> Noise:
        """The noise of ONE row of shape (C, H, W): t () int64, eps and, for latents, the posterior sample."""
        t = torch.randint(self.timesteps, (), generator=generator)
        eps = torch.randn(tuple(shape), generator=generator)
        return Noise(
            t=t, eps=eps, posterior=torch.randn(tuple(shape), generator=generator) if latent else None
        )

    def q_sample(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (DDPM eq. 4)."""
        return self.at("signal", t, x0) * x0 + self.at("noise", t, x0) * eps

    def predict(self, net: Net, x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        out = net(x_t, t, y)
        if not self.learn_sigma:
            return Prediction(out, None)
        eps, v = out.chunk(2, dim=1)
        return Prediction(eps, v)

    def losses(
        self,
        net: Net,
        x0: Tensor,
        y: Tensor,
        noise: Noise,
        *,
        target: Prediction | None = None,
        anchor: Anchor | None = None,
    ) -> Tensor:
        """Per-row training loss (N,): mean squared error of eps plus, with learned sigma, the variational
        bound.

        Without `target` the error is taken against the noise that was added (the usual loss). With a `target`
        it is taken against that prediction (eps and v), which then stands for a frozen model's. The
        variational term trains v alone: it sees eps detached, or what `anchor` holds.
        """
        x_t = self.q_sample(x0, noise.t, noise.eps)
        # a network under autocast answers in bfloat16; errors are taken, squared and averaged in x0's dtype
        got = self.predict(lambda *inputs: net(*inputs).to(x0.dtype), x_t, noise.t, y)
        target_noise = noise.eps if target is None else target.eps
        loss = (got.eps - target_noise.to(got.eps.dtype)).square().flatten(1).mean(dim=1)
        if got.v is None:
            return loss
        if target is not None:
            assert target.v is not None
            return loss + (got.v - target.v.to(got.v.dtype)).square().flatten(1).mean(dim=1)
        mean_eps = got.eps.detach() if anchor is None else anchor.hold(got.eps)
        return loss + self.variational_bound(x0, x_t, noise.t, mean_eps, got.v)

    def variational_bound(self, x0: Tensor, x_t: Tensor, t: Tensor, eps: Tensor, v: Tensor) -> Tensor:
        """L_vlb of one timestep in bits per dimension (Nichol & Dhariwal 2021, section 3.1), (N,)."""
        low, high = self.at("posterior_log_variance", t, x_t), self.at("log_beta", t, x_t)
        log_variance = (v + 1) / 2 * high + (1 - (v + 1) / 2) * low  # eq. 15
        true_mean = self._posterior_mean(x0, x_t, t)
        mean = self._posterior_mean(self.x0_from_eps(x_t, t, eps), x_t, t)
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

    def x0_from_eps(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return (x_t - self.at("noise", t, x_t) * eps) / self.at("signal", t, x_t)

    def _posterior_mean(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return self.at("posterior_mean_x0", t, x_t) * x0 + self.at("posterior_mean_xt", t, x_t) * x_t

    @torch.no_grad()
    def sample(
        self,
        net: Net,
        start: Tensor,
        y: Tensor,
        *,
        null_label: int,
        cfg_scale: float,
        steps: int,
        clip: bool = True,
    ) -> Tensor:
        """Deterministic DDIM (Song et al. 2021, eq. 12 with eta 0) from `start` (N, C, H, W) ~ N(0, 1) to
        x_0.

        Guidance: eps = eps_null + cfg_scale (eps_y - eps_null) (Ho & Salimans 2022); scale 1 needs one pass
        only.
        `clip` holds the estimate of x_0 in [-1, 1] (pixels; latents are not bounded).
        """
        times = torch.linspace(self.timesteps - 1, 0, steps).round().long()
        x, null = start, torch.full_like(y, null_label)
        for index, step in enumerate(times.tolist()):
            t = torch.full((len(x),), step, device=x.device)
            eps = self._guided_eps(net, x, t, y, null, cfg_scale)
            abar = self.alpha_bar[step].item()
            x0 = (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
            if clip:
                x0 = x0.clamp(-1, 1)
                eps = (x - math.sqrt(abar) * x0) / math.sqrt(1 - abar)
            following = self.alpha_bar[int(times[index + 1])].item() if index + 1 < steps else 1.0
            x = math.sqrt(following) * x0 + math.sqrt(1 - following) * eps
        return x

    def _guided_eps(self, net: Net, x: Tensor, t: Tensor, y: Tensor, null: Tensor, scale: float) -> Tensor:
        if scale == 1:
            return self.predict(net, x, t, y).eps.to(x.dtype)
        both = self.predict(net, torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null])).eps.to(x.dtype)
        conditional, unconditional = both.chunk(2)
        return unconditional + scale * (conditional - unconditional)


def _betas(schedule: str, timesteps: int) -> Tensor:
    """(T,) float64: `linear` (DDPM, scaled to T) or `cosine` (Nichol & Dhariwal 2021, eq. 17)."""
    if schedule == "linear":
        scale = 1000 / timesteps
        return torch.linspace(scale * 1e-4, scale * 0.02, timesteps, dtype=torch.float64)
    if schedule == "cosine":
        s = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        abar = ((s + 0.008) / 1.008 * math.pi / 2).cos().square()
        return (1 - abar[1:] / abar[:-1]).clamp(max=0.999)
    raise ValueError(f"schedule: got {schedule!r}, expected linear or cosine")


def _discretised_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log P of 8-bit pixels in [-1, 1] under a Gaussian, elementwise (DDPM eq. 13, with the tanh form of the
    normal CDF)."""

    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    inverse = (-log_scale).exp()
    above, below = cdf(inverse * (x - mean + 1 / 255)), cdf(inverse * (x - mean - 1 / 255))
    inner = torch.where(x > 0.999, (1 - below).clamp(min=1e-12).log(), (above - below).clamp(min=1e-12).log())
    return torch.where(x < -0.999, above.clamp(min=1e-12).log(), inner)
