"""A generative model as the pipeline sees it: a network, its own training loss, its sampler, and whether it
takes labels.

`build` turns the config.json beside the weights into such a model. A new family is one class and one line in
FAMILIES. Shape legend: N rows, C channels, H x W, D embedding width.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.diffusion import Net, Noise, Prediction
from models.diffusion.time import Time
from models.families.dit import DiTModel as DiTModel
from models.families.dit import dit_description as dit_description
from models.families.lightningdit import LightningDiTModel
from models.families.repa import REPAModel
from models.families.sit import SiTModel
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
    time: Time  # what `sample_noise` samples t from
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


FAMILIES: dict[str, Family] = {
    "dit": DiTModel,
    "sit": SiTModel,
    "repa": REPAModel,
    "lightningdit": LightningDiTModel,
    "vae": VAEModel,
}


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


def build(config: Mapping[str, Any], **options: Any) -> GenerativeModel:
    """The model that a config.json describes, weights not yet loaded; `options` are settings of the run, such
    as batch_norm."""
    family = config.get("family")
    if family not in FAMILIES:
        raise ValueError(f"config.json: got family {family!r}, expected one of {', '.join(FAMILIES)}")
    return FAMILIES[family]({**config, **options})
