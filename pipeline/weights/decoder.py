"""From samples of a model to images: nothing for a model of pixels, the autoencoder's decoder for one of
latents."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.weights import model_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def image_shape(stored: model_folder.Stored, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(H, W, C) of the images of a model whose rows are `shape` (C, H, W)."""
    channels, height, width = shape
    if stored.autoencoder is None:
        return height, width, channels
    by = factor(stored.config["autoencoder"])
    return height * by, width * by, int(stored.config["autoencoder"]["config"]["out_channels"])


def factor(autoencoder: dict[str, Any]) -> int:
    """How many pixels a latent stands for, in each direction."""
    return 2 ** (len(autoencoder["config"]["block_out_channels"]) - 1)


def to_pixels(stored: model_folder.Stored, device: "torch.device") -> Callable[["Tensor"], "Tensor"]:
    """From samples of the model to images (N, C, H, W) in [-1, 1]: the decoder of a model of latents, else
    nothing."""
    if stored.autoencoder is None:
        return lambda x: x
    from models.latents import decoder

    return decoder(stored.config["autoencoder"], stored.autoencoder, device)
