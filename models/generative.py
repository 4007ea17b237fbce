"""A generative model as the pipeline sees it: a network, its own training loss, its sampler, and whether it
takes labels.

`build` turns the config.json beside the weights into such a model. A new family is one class and one line in
FAMILIES. Shape legend: N rows, C channels, H x W, D embedding width.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from models.diffusion import Diffusion, Net, Noise, Prediction
from models.dit import SIZES, DiT, DiTConfig, dit_config
from models.vae import VAEModel


class GenerativeModel(Protocol):
    """What the unlearning loop, the evaluation and the registry ask of any family.

    `conditional`: whether it samples what a label asks for. `num_classes` counts the data's classes either
    way.
    """

    net: nn.Module
    config: dict[str, Any]
    conditional: bool
    num_classes: int
    null_label: int
    shape: tuple[int, int, int]  # (C, H, W) of one row
    latent: tuple[int, ...] | None  # of one sample, where `decode` makes samples in one differentiable pass

    @property
    def whole_batch(self) -> bool:
        """Whether a row's loss depends on the other rows, so that the batch may not be cut."""

    def sample_noise(self, generator: torch.Generator, *, latent: bool) -> Noise:
        """The noise of one row."""

    def losses(self, net: Net, x0: Tensor, y: Tensor, noise: Noise, **options: Any) -> Tensor:
        """Per-row training loss (N,); option `target` (a `Prediction`) replaces what it is
        measured against."""

    def predict(self, net: Net, x0: Tensor, y: Tensor, noise: Noise) -> Prediction:
        """What `net` predicts at the noised rows: the target that a frozen teacher gives."""

    def sample(
        self, *, labels: Tensor, seeds: Sequence[int], cfg_scale: float, steps: int, net: Net | None = None
    ) -> Tensor:
        """Rows (N, C, H, W): row k depends on labels[k] and seeds[k] only."""

    def decode(self, z: Tensor) -> Tensor:
        """Normal latents (N, *latent) -> rows (N, C, H, W), with a graph."""

    def label_table(self) -> Tensor | None:
        """One embedding a label, (classes, D): how near the model holds two classes. None without labels."""

    def trainable_groups(self) -> dict[str, Callable[[int], list[str]]]:
        """Parameter-name prefixes of each named subset, given its K."""


class Family(Protocol):
    """The class of a family's models: called with a config.json, it gives one without its weights."""

    sizes: Collection[str]  # names of its architectures, as model.size has them
    conditional: bool

    def __call__(self, config: dict[str, Any]) -> GenerativeModel: ...

    def describe(
        self, size: str, *, shape: Sequence[int], class_names: Sequence[str], **options: Any
    ) -> dict[str, Any]:
        """The config.json of a model of `size` for rows of `shape` (C, H, W); `ValueError` where they do not
        fit."""


class DiTModel:
    """Class-conditional DiT with Gaussian diffusion."""

    sizes: ClassVar[Collection[str]] = SIZES
    conditional = True
    whole_batch = False
    latent: tuple[int, ...] | None = None

    @staticmethod
    def describe(
        size: str, *, shape: Sequence[int], class_names: Sequence[str], **options: Any
    ) -> dict[str, Any]:
        return dit_description(
            size, shape=shape, num_classes=len(class_names), class_names=class_names, **options
        )

    def __init__(self, config: dict[str, Any]):
        self.config = config
        self.architecture: DiTConfig = dit_config(config["size"], **config.get("architecture", {}))
        with torch.device(config.get("device", "cpu")):  # "meta": shapes without numbers, for plans
            self.net: nn.Module = DiT(self.architecture)
        self.num_classes = self.architecture.num_classes
        self.null_label = self.architecture.null_label
        self.shape: tuple[int, int, int] = (
            self.architecture.channels,
            self.architecture.input_size,
            self.architecture.input_size,
        )
        self.diffusion = Diffusion(
            config["schedule"], config["timesteps"], learn_sigma=self.architecture.learn_sigma
        )
        self.clip = bool(config["clip_samples"])

    def sample_noise(self, generator: torch.Generator, *, latent: bool) -> Noise:
        return self.diffusion.sample_noise(self.shape, generator, latent=latent)

    def losses(self, net: Net, x0: Tensor, y: Tensor, noise: Noise, **options: Any) -> Tensor:
        return self.diffusion.losses(net, x0, y, noise, **options)

    def predict(self, net: Net, x0: Tensor, y: Tensor, noise: Noise) -> Prediction:
        return self.diffusion.predict(net, self.diffusion.q_sample(x0, noise.t, noise.eps), noise.t, y)

    def sample(
        self, *, labels: Tensor, seeds: Sequence[int], cfg_scale: float, steps: int, net: Net | None = None
    ) -> Tensor:
        parameter = next(self.net.parameters())
        start = torch.stack(
            [torch.randn(self.shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )
        return self.diffusion.sample(
            net or self.net,
            start.to(parameter.device),
            labels.to(parameter.device),
            null_label=self.null_label,
            cfg_scale=cfg_scale,
            steps=steps,
            clip=self.clip,
        )

    def decode(self, z: Tensor) -> Tensor:
        raise ValueError("a DiT's samples take many passes, they cannot be differentiated")

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


FAMILIES: dict[str, Family] = {"dit": DiTModel, "vae": VAEModel}


def family_of(size: str) -> Family:
    """The family that has an architecture `size`. Raises `ValueError` for one that none has."""
    for family in FAMILIES.values():
        if size in family.sizes:
            return family
    sizes = ", ".join(name for family in FAMILIES.values() for name in family.sizes)
    raise ValueError(f"model.size: got {size!r}, expected one of {sizes}")


def is_conditional(size: str) -> bool:
    """Whether models of `size` sample what a label asks for; a size that no family has is
    refused elsewhere."""
    return all(family.conditional for family in FAMILIES.values() if size in family.sizes)


def describe(
    size: str, *, shape: Sequence[int], class_names: Sequence[str], **options: Any
) -> dict[str, Any]:
    """The config.json of a model of `size`, of whichever family, for rows of `shape` (C, H, W); `ValueError`
    where they do not fit."""
    return family_of(size).describe(size, shape=shape, class_names=class_names, **options)


def dit_description(
    size: str,
    *,
    shape: Sequence[int],
    num_classes: int,
    class_names: Sequence[str],
    latent: bool = False,
    schedule: str | None = None,
    learn_sigma: bool | None = None,
    sampler: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The config.json of a DiT of `size` for rows of `shape` (C, H, W): all that `build` needs beside the
    weights."""
    channels, height, width = shape
    if height != width:
        raise ValueError(f"images: got {height} x {width}, expected square ones")
    architecture = {"input_size": height, "channels": channels, "num_classes": num_classes}
    if learn_sigma is not None:
        architecture["learn_sigma"] = learn_sigma
    dit_config(size, **architecture)
    return {
        "family": "dit",
        "size": size,
        "architecture": architecture,
        "schedule": schedule or ("linear" if latent else "cosine"),
        "timesteps": 1000,
        "clip_samples": not latent,
        "class_names": list(class_names),
        "sampler": sampler or {"cfg_scale": 2.0, "steps": 20},
    }


def build(config: Mapping[str, Any], **options: Any) -> GenerativeModel:
    """The model that a config.json describes, weights not yet loaded; `options` are settings of the run, such
    as batch_norm."""
    family = config.get("family")
    if family not in FAMILIES:
        raise ValueError(f"config.json: got family {family!r}, expected one of {', '.join(FAMILIES)}")
    return FAMILIES[family]({**config, **options})
