"""Pixels <-> latents with a diffusers AutoencoderKL such as sd-vae-ft-mse. Diffusers is imported only when
one is loaded."""

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
BATCH = 32  # images decoded at once
IN_FLIGHT = 2  # batches that a GPU has at once


def latent_shape(config: dict[str, Any], size: int) -> tuple[int, int, int]:
    """(C, H, W) of the latent of a square image of `size` pixels. Raises `ValueError` when the size does not
    divide."""
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    if size % factor:
        raise ValueError(f"got images of {size} pixels, expected a multiple of the autoencoder's {factor}")
    return int(config["latent_channels"]), size // factor, size // factor


def load_autoencoder(folder: str, device: str = "cpu") -> torch.nn.Module:
    """The autoencoder in a local folder of `config.json` and weights, in eval mode. Raises `ImportError`
    without diffusers."""
    safe = (Path(folder) / WEIGHTS_FILE).is_file()  # else .bin, which diffusers reads as plain tensors only
    loaded = _autoencoder_class().from_pretrained(
        folder, use_safetensors=safe, local_files_only=True, low_cpu_mem_usage=False
    )
    return loaded.eval().requires_grad_(False).to(device)


def describe_autoencoder(autoencoder: Any) -> dict[str, Any]:
    """What `build_autoencoder` needs beside the weights: the architecture and the factor between its latents
    and the model's."""
    config = {key: value for key, value in autoencoder.config.items() if not key.startswith("_")}
    return {"config": config, "scale": float(config["scaling_factor"])}


def build_autoencoder(description: Mapping[str, Any], state: Mapping[str, Tensor]) -> torch.nn.Module:
    """The autoencoder of `describe_autoencoder`, with its weights, in eval mode. Raises `ImportError` without
    diffusers."""
    built = _autoencoder_class()(**description["config"])
    built.load_state_dict(dict(state))
    return built.eval().requires_grad_(False)


def decoder(
    description: Mapping[str, Any], state: Mapping[str, Tensor], device: torch.device | str
) -> Callable[[Tensor], Tensor]:
    """A function from the model's latents (N, C, h, w), normalised by `scale` and, where there are any,
    `statistics` of each channel, to images (N, 3, H, W), about [-1, 1], on `device`, a
    few at a time."""
    autoencoder, scale = build_autoencoder(description, state).to(device), float(description["scale"])
    statistics = description.get("statistics")

    def latents(z: Tensor) -> Tensor:
        """As the autoencoder made them."""
        if statistics is None:
            return z / scale
        mean, std = (torch.tensor(statistics[key]).view(-1, 1, 1).to(z) for key in ("mean", "std"))
        return z / scale * std + mean

    return lambda z: torch.cat([decode(autoencoder, latents(part.to(device))) for part in z.split(BATCH)])


def _autoencoder_class() -> Any:
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ImportError(
            "diffusers is missing, latents need it: pip install -e '.[diffusers]' in the checkout"
        ) from error
    return AutoencoderKL


@torch.no_grad()
def encode(autoencoder: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The posterior of x (N, 3, H, W) in [-1, 1]: mean and standard deviation (N, C, h,
    w), not yet scaled."""
    posterior = autoencoder.encode(x).latent_dist
    return posterior.mean, posterior.std


def encode_pixels(autoencoder: Any, images: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, H, W, 3) -> posterior mean and std, fp16 (N, C, h, w), `batch` images at a time.

    A GPU has the next batch, out of pinned memory, before the last one's latents are waited for."""
    device = next(autoencoder.parameters()).device
    queued: deque[tuple[Tensor, Tensor]] = deque()
    latents: list[list[np.ndarray]] = []
    for first in range(0, len(images), batch):
        chunk = torch.from_numpy(np.ascontiguousarray(images[first : first + batch]))
        if device.type == "cuda":
            chunk = chunk.pin_memory().to(device, non_blocking=True)
        mean, std = encode(autoencoder, chunk.permute(0, 3, 1, 2).float() / 127.5 - 1)
        queued.append((mean.half(), std.half()))
        if len(queued) == IN_FLIGHT:
            latents.append([one.cpu().numpy() for one in queued.popleft()])
    latents += [[one.cpu().numpy() for one in pair] for pair in queued]
    means, stds = zip(*latents, strict=True)
    return np.concatenate(means), np.concatenate(stds)


@torch.no_grad()
def decode(autoencoder: Any, z: Tensor) -> Tensor:
    """Latents (N, C, h, w) as the autoencoder makes them -> images (N, 3, H, W), about [-1, 1]."""
    return autoencoder.decode(z).sample
