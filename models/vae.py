"""The paper's variational autoencoders (Kingma & Welling 2014): an MLP for MNIST, a convolutional one for
CelebA.

Unconditional: a sample is one pass of the decoder from a normal latent, and can be differentiated. The state
dicts have the published names. Shape legend: N images, C channels, H x W, Z latent.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.diffusion import Noise, Prediction
from models.diffusion.time import Discrete, Time
from models.judge import initialise

Statistics = Literal["running", "batch", "tracked"]
# decoder output (N, C, H, W), posterior mean (N, Z), log variance (N, Z)
Encoded = tuple[Tensor, Tensor, Tensor]
MOMENTUM = 0.1


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """`widths`: hidden width of the MLP, or channels of the convolutions, each of which halves the image."""

    kind: Literal["mlp", "conv"]
    input_size: int
    channels: int
    widths: tuple[int, ...]
    latent: int
    reconstruction: Literal["bce", "mse"]  # summed over pixels; bce takes pixels as [0, 1]
    beta: float = 1.0
    num_classes: int = 10


SIZES = {
    "vae-mnist": VAEConfig(
        kind="mlp", input_size=28, channels=1, widths=(400,), latent=2, reconstruction="bce"
    ),
    "vae-celeba": VAEConfig(
        kind="conv",
        input_size=64,
        channels=3,
        widths=(32, 64, 128, 256, 512),
        latent=512,
        reconstruction="mse",
        num_classes=2,
    ),
}


class Normalised(nn.Module):
    """A network with batch norm, whose statistics are a setting.

    `running`: the stored ones, which never change: a row's loss is its own, so shards and micro-batches add
    up exactly.
    `batch`: those of the rows at hand while training, the stored ones untouched. `tracked`: the same, and the
    stored ones follow (training from scratch). In evaluation mode the stored ones always serve.
    """

    statistics: Statistics = "running"

    def normalise_by(self, statistics: Statistics) -> None:
        self.statistics = statistics
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = MOMENTUM if statistics == "tracked" else 0.0
                module.track_running_stats = statistics != "batch"  # else every pass would be counted
        self.train(self.training)

    def train(self, mode: bool = True) -> "Normalised":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.train(mode and self.statistics != "running")
        return self

    def initialise(self, generator: torch.Generator) -> None:
        initialise(self, generator)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, eps: Tensor, move: Callable[[Tensor], Tensor] | None = None) -> Encoded:
        """`move` takes the latents (N, Z) elsewhere before they are decoded."""
        mean, log_variance = self.encode(x)
        z = mean + (0.5 * log_variance).exp() * eps
        return self.decode(move(z) if move else z), mean, log_variance


class MLPVAE(Normalised):
    """pixels - hidden - Z - hidden - pixels with batch norm and ReLU. Takes [-1, 1], sees [0, 1]; `decode`
    gives logits of pixels."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        (hidden,) = config.widths
        self.shape = (config.channels, config.input_size, config.input_size)
        pixels = config.channels * config.input_size**2
        self.encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.enc_log_sigma = nn.Linear(hidden, config.latent)  # log variance, under its published name
        self.enc_mu = nn.Linear(hidden, config.latent)
        self.decoder = nn.Sequential(
            nn.Linear(config.latent, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, pixels)
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder((x.flatten(1) + 1) / 2)
        return self.enc_mu(h), self.enc_log_sigma(h)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z).unflatten(1, self.shape)


class ConvVAE(Normalised):
    """Strided convolutions down, transposed ones up, with batch norm and leaky ReLU; `decode` gives pixels in
    [-1, 1]."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths, grid = config.widths, config.input_size >> len(config.widths)
        self.deepest = (widths[-1], grid, grid)
        flat = widths[-1] * grid**2
        self.encoder = nn.Sequential(*(_halve(a, b) for a, b in zip((config.channels, *widths), widths)))
        self.fc_mu = nn.Linear(flat, config.latent)
        self.fc_var = nn.Linear(flat, config.latent)
        self.decoder_input = nn.Linear(config.latent, flat)
        upwards = widths[::-1]
        self.decoder = nn.Sequential(*(nn.Sequential(*_double(a, b)) for a, b in pairwise(upwards)))
        self.final_layer = nn.Sequential(
            *_double(widths[0], widths[0]), nn.Conv2d(widths[0], config.channels, 3, padding=1), nn.Tanh()
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x).flatten(1)
        return self.fc_mu(h), self.fc_var(h)

    def decode(self, z: Tensor) -> Tensor:
        return self.final_layer(self.decoder(self.decoder_input(z).unflatten(1, self.deepest)))


class VAEModel:
    """An unconditional VAE under the pipeline's interface (models/generative.py). Its noise is the
    reparameterisation's eps."""

    sizes: ClassVar[Collection[str]] = SIZES
    conditional = False
    time: Time = Discrete(1)

    @staticmethod
    def describe(
        size: str, *, shape: Sequence[int], class_names: Sequence[str], **options: Any
    ) -> dict[str, Any]:
        return vae_description(
            size, shape=shape, num_classes=len(class_names), class_names=class_names, **options
        )

    def __init__(self, config: dict[str, Any]):
        self.config = config
        self.architecture = vae_config(config["size"], **config.get("architecture", {}))
        self.vae: Normalised = (
            MLPVAE(self.architecture) if self.architecture.kind == "mlp" else ConvVAE(self.architecture)
        )
        self.vae.normalise_by(config.get("batch_norm", "running"))
        self.net: nn.Module = self.vae
        # of the data: what a judge tells apart, not what the model is asked for
        self.num_classes = self.architecture.num_classes
        self.null_label = self.num_classes
        self.shape: tuple[int, int, int] = (
            self.architecture.channels,
            self.architecture.input_size,
            self.architecture.input_size,
        )
        self.latent: tuple[int, ...] | None = (self.architecture.latent,)

    @property
    def whole_batch(self) -> bool:
        return self.vae.statistics != "running"

    def sample_noise(self, generator: torch.Generator, *, latent: bool) -> Noise:
        assert not latent, "a VAE of pixels takes no stored latents"
        return Noise(
            t=torch.zeros((), dtype=torch.int64),
            eps=torch.randn(self.architecture.latent, generator=generator),
        )

    def losses(
        self,
        net: Callable[..., Any],
        x0: Tensor,
        y: Tensor,
        noise: Noise,
        *,
        target: Prediction | None = None,
        **_: Any,
    ) -> Tensor:
        """Negative ELBO in nats, (N,): reconstruction summed over pixels + beta KL. A `target` stands in for
        the pixels to be met."""
        # under autocast a network answers in bfloat16
        out, mean, log_variance = (part.to(x0.dtype) for part in net(x0, noise.eps.to(x0.dtype)))
        target_image = x0 if target is None else target.value.to(x0.dtype)
        if self.architecture.reconstruction == "bce":
            errors = F.binary_cross_entropy_with_logits(out, (target_image + 1) / 2, reduction="none")
        else:
            errors = (out - target_image).square()
        kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)
        return errors.flatten(1).sum(1) + self.architecture.beta * kl

    def predict(self, net: Callable[..., Any], x0: Tensor, y: Tensor, noise: Noise) -> Prediction:
        """The reconstruction that `net` gives with this noise, (N, C, H, W) in [-1, 1]."""
        return Prediction(self._pixels(net(x0, noise.eps.to(x0.dtype))[0]), None)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (N, Z) -> images (N, C, H, W) in [-1, 1]."""
        return self._pixels(self.vae.decode(z))

    @torch.no_grad()
    def sample(
        self, *, labels: Tensor, seeds: Sequence[int], cfg_scale: float, steps: int, net: Any = None
    ) -> Tensor:
        """One image a seed; labels, guidance and sampler steps mean nothing to it."""
        parameter = next(self.net.parameters())
        z = torch.stack(
            [
                torch.randn(self.architecture.latent, generator=torch.Generator().manual_seed(seed))
                for seed in seeds
            ]
        )
        return self.decode(z.to(parameter))

    def label_table(self) -> None:
        return None

    def trainable_groups(self) -> dict[str, Callable[[int], list[str]]]:
        return {
            "all": lambda k: [""],
            "decoder": lambda k: ["decoder", "final_layer."],
            "encoder": lambda k: ["encoder.", "enc_", "fc_"],
        }

    def _pixels(self, out: Tensor) -> Tensor:
        return 2 * out.sigmoid() - 1 if self.architecture.reconstruction == "bce" else out


def vae_config(size: str, **changes: Any) -> VAEConfig:
    """The architecture of `size`; raises `ValueError` for one there is not, or whose convolutions do not fit
    the image."""
    if size not in SIZES:
        raise ValueError(f"model.size: got {size!r}, expected one of {', '.join(SIZES)}")
    changes = {key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()}
    config = replace(SIZES[size], **changes)
    if config.kind == "conv" and config.input_size % (1 << len(config.widths)):
        raise ValueError(
            f"images: got {config.input_size} pixels, expected a multiple of {1 << len(config.widths)} for"
            f" {size}"
        )
    return config


def vae_description(
    size: str,
    *,
    shape: Sequence[int],
    num_classes: int,
    class_names: Sequence[str],
    architecture: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The config.json of a VAE of `size` for rows of `shape` (C, H, W). Raises `ValueError` when the rows do
    not fit it."""
    config = vae_config(size, **(architecture or {}))
    expected = (config.channels, config.input_size, config.input_size)
    if tuple(shape) != expected:
        raise ValueError(
            f"model.size: {size} is for images of shape {expected}, got {tuple(shape)}; prepare the lake with"
            " that size"
        )
    return {
        "family": "vae",
        "size": size,
        "architecture": {**(architecture or {}), "num_classes": num_classes},
        "class_names": list(class_names),
        # what the sampling interface asks for; a decoder has neither
        "sampler": {"cfg_scale": 1.0, "steps": 1},
    }


def describe_state(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The config.json of the VAE whose bare published state dict this is, with that data set's classes; None
    for any other weights."""
    for size, name, names in (
        ("vae-mnist", "enc_mu.weight", [str(digit) for digit in range(10)]),
        ("vae-celeba", "fc_mu.weight", ["0", "1"]),
    ):
        if name in state:
            config = SIZES[size]
            shape = (config.channels, config.input_size, config.input_size)
            return vae_description(size, shape=shape, num_classes=len(names), class_names=names)
    return None


def _halve(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.LeakyReLU()
    )


def _double(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return (
        nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(),
    )
