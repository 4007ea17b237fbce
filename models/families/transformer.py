"""What all class-conditional transformers share: a label table, sampling from seeds, named subsets of
parameters. A family adds its network, sizes and process. Shape legend: N rows, C channels, H x W.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.diffusion import Diffusion, Net, Noise, Prediction, SamplerSettings
from models.diffusion.path import VariancePreserving
from models.diffusion.respacing import timesteps
from models.diffusion.samplers.table import changed, sampler_of
from models.dit import DiTConfig


class Unfilled(TorchFunctionMode):
    """Context: no weights are drawn. On the meta device, where there is nothing to fill, that alone would
    import torch's compiler: half a second of every job."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


class Transformer:
    """Base of the families; `config` is a config.json, see `describe`."""

    sizes: ClassVar[Collection[str]]
    conditional = True
    whole_batch = False
    latent: tuple[int, ...] | None = None
    # how the family's papers sample, as config.json's `sampler` would say it
    published: ClassVar[Mapping[str, Any]]
    per_channel = False  # whether its latents are normalised channel by channel
    black: ClassVar[float] = 128.0  # how published code makes bytes of x: 127.5 x + black, truncated

    def __init__(self, config: dict[str, Any]):
        self.config = config
        self.architecture = self.architecture_of(config["size"], **config.get("architecture", {}))
        device = config.get("device", "cpu")
        # "meta": shapes without numbers, for plans
        with torch.device(device), Unfilled() if device == "meta" else nullcontext():
            self.net: nn.Module = self.network(self.architecture)
        self.num_classes = self.architecture.num_classes
        self.null_label = self.architecture.null_label
        self.shape: tuple[int, int, int] = (
            self.architecture.channels,
            self.architecture.input_size,
            self.architecture.input_size,
        )
        self.diffusion = self.process(config)
        self.time = self.diffusion.time
        if not isinstance(config["clip_samples"], bool):
            raise ValueError(f"clip_samples: got {config['clip_samples']!r}, expected true or false")
        self.clip = config["clip_samples"]
        if "sampler" in config:  # so that a wrong one is refused before anything is sampled
            settings = SamplerSettings.of(config["sampler"])
            sampler_of(settings, self.diffusion.path, self.diffusion.prediction)

    @classmethod
    def architecture_of(cls, size: str, **changes: Any) -> DiTConfig:
        """The named size, changed. Raises `ValueError` for one that there is not."""
        raise NotImplementedError

    @staticmethod
    def network(architecture: Any) -> nn.Module:
        raise NotImplementedError

    def process(self, config: Mapping[str, Any]) -> Diffusion:
        raise NotImplementedError

    def sample_noise(self, generator: torch.Generator, *, latent: bool) -> Noise:
        return self.diffusion.sample_noise(self.shape, generator, latent=latent)

    def losses(self, net: Net, x0: Tensor, y: Tensor, noise: Noise, **options: Any) -> Tensor:
        return self.diffusion.losses(net, x0, y, noise, **options)

    def predict(self, net: Net, x0: Tensor, y: Tensor, noise: Noise) -> Prediction:
        return self.diffusion.predict(net, self.diffusion.noised(x0, noise), noise.t, y)

    def sample(
        self,
        *,
        labels: Tensor,
        seeds: Sequence[int],
        cfg_scale: float,
        steps: int,
        net: Net | None = None,
        sampler: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Rows (N, C, H, W). `sampler` stands in for config.json's; the row's generator gives its start, then
        the noise of each step."""
        described = self.config.get("sampler", {}) if sampler is None else sampler
        device = next(self.net.parameters()).device
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def fresh() -> Tensor:
            return torch.stack([torch.randn(self.shape, generator=g) for g in generators]).to(device)

        return self.diffusion.sample(
            net or self.net,
            fresh(),
            labels.to(device),
            SamplerSettings.of(described, cfg_scale=cfg_scale, steps=steps),
            null_label=self.null_label,
            clip=self.clip,
            fresh=fresh,
        )

    def sampler_with(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """config.json's `sampler`, changed."""
        return changed(self.config.get("sampler", {}), changes)

    def require_sampler(self, described: Mapping[str, Any], *, steps: int) -> None:
        """Raise `ValueError` for a sampler that this model has not got or that cannot take `steps`."""
        path = self.diffusion.path
        settings = SamplerSettings.of(described, cfg_scale=1.0, steps=steps)
        sampler_of(settings, path, self.diffusion.prediction)
        if isinstance(path, VariancePreserving):
            timesteps(path.steps, steps, settings.respacing)

    def decode(self, z: Tensor) -> Tensor:
        raise ValueError("a transformer's samples take many passes, they cannot be differentiated")

    def label_table(self) -> Tensor:
        return self.net.get_parameter("y_embedder.embedding_table.weight")[: self.num_classes]

    def trainable_groups(self) -> dict[str, Callable[[int], list[str]]]:
        depth = self.architecture.depth

        def last(k: int) -> list[str]:
            if not 1 <= k <= depth:
                raise ValueError(
                    f"trainable: got the last {k} blocks, expected 1 to {depth} for {self.config['size']}"
                )
            return [f"blocks.{index}.adaLN_modulation." for index in range(depth - k, depth)]

        return {
            "labels_and_adaln": lambda k: ["y_embedder.", *last(k)],
            "adaln": last,
            "labels": lambda k: ["y_embedder."],
            "all": lambda k: ["x_embedder.", "t_embedder.", "y_embedder.", "blocks.", "final_layer."],
        }


def square_side(shape: Sequence[int]) -> int:
    """The side of rows (C, H, W). Raises `ValueError` unless they are square."""
    _, height, width = shape
    if height != width:
        raise ValueError(f"images: got {height} x {width}, expected square ones")
    return height
