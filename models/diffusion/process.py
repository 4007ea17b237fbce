"""A path between data and noise, what is predicted along it, and its time, as one process: training loss and
sampling. Shape legend: N images, C channels, H x W."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from models.diffusion.path import Flow, Path, VariancePreserving, betas_of
from models.diffusion.prediction import Epsilon, Target, Velocity
from models.diffusion.samplers.settings import Level, Run, SamplerSettings
from models.diffusion.samplers.table import sampler_of
from models.diffusion.terms import Anchor, Net, Noise, Prediction
from models.diffusion.time import Continuous, Discrete, Time


class Diffusion:
    """One of each; `gaussian` and `flow` put together those that belong together."""

    def __init__(self, path: Path, prediction: Target, time: Time):
        self.path, self.prediction, self.time = path, prediction, time

    def sample_noise(self, shape: Sequence[int], generator: torch.Generator, *, latent: bool) -> Noise:
        """The noise of ONE row of shape (C, H, W): t (), eps and, for latents, the posterior sample."""
        t = self.time.sample(generator)
        eps = torch.randn(tuple(shape), generator=generator)
        return Noise(
            t=t, eps=eps, posterior=torch.randn(tuple(shape), generator=generator) if latent else None
        )

    def noised(self, x0: Tensor, noise: Noise) -> Tensor:
        """x_t (N, C, H, W)."""
        return self.path.noised(x0, noise.t, noise.eps)

    def predict(self, net: Net, x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        return self.prediction.of(net(x_t, t, y))

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
        """Per-row training loss (N,): what the prediction is trained with.

        Without `target` the error is taken against what was added (the usual loss). With a `target` it is
        taken against that prediction, which then stands for a frozen model's; a learned variance against the
        target's.
        """
        x_t = self.noised(x0, noise)
        # a network under autocast answers in bfloat16; errors are taken, squared and averaged in x0's dtype
        got = self.predict(lambda *inputs: net(*inputs).to(x0.dtype), x_t, noise.t, y)
        if target is not None:
            return self.prediction.distances(got, target)
        return self.prediction.losses(self.path, got, x0, x_t, noise, anchor)

    @torch.no_grad()
    def sample(
        self,
        net: Net,
        start: Tensor,
        y: Tensor,
        settings: SamplerSettings,
        *,
        null_label: int,
        clip: bool = True,
        fresh: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """From `start` (N, C, H, W) ~ N(0, 1) to x_0, by the sampler that `settings` name.

        `fresh` gives a stochastic sampler the standard normals (N, C, H, W) of its next step.
        """
        sampler = sampler_of(settings, self.path, self.prediction)
        null, guidance = torch.full_like(y, null_label), settings.guidance
        time_dtype = torch.int64 if isinstance(self.time, Discrete) else torch.float32

        def network(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            return net(x.to(start.dtype), t, labels)  # a sampler's state may be wider

        def ask(x: Tensor, t: Level, *, level: Level) -> Prediction:
            if isinstance(t, Tensor):
                times = t.to(time_dtype)
            else:
                times = torch.full((len(x),), t, device=x.device, dtype=time_dtype)
            return guidance(network, self.prediction, x, times, y, null, level=level)

        noise = fresh or partial(torch.randn_like, start)
        return sampler.solve(
            Run(path=self.path, ask=ask, start=start, settings=settings, clip=clip, fresh=noise)
        )


def gaussian(schedule: str, timesteps: int = 1000, *, learn_sigma: bool = False) -> Diffusion:
    """Diffusion in integer timesteps that predicts the noise (Ho et al. 2020)."""
    path = VariancePreserving(betas_of(schedule, timesteps))
    return Diffusion(path, Epsilon(learned_variance=learn_sigma), Discrete(timesteps))


def flow(kind: str, *, data_at: int, times: str = "uniform", direction: bool = False) -> Diffusion:
    """A flow in continuous time that predicts the velocity (Lipman et al. 2023)."""
    return Diffusion(Flow(kind, data_at), Velocity(direction=direction), Continuous(data_at, training=times))
