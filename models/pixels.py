"""8-bit images and the numbers that models take: uint8 on one side, [-1, 1] (N, C, H, W) on the other."""

import numpy as np
import torch
from torch import Tensor


def pixels_to_unit(image: Tensor) -> Tensor:
    """uint8 (N, C, H, W), in whatever order in memory, -> float32 of that shape in [-1, 1]."""
    return image.contiguous().float().div_(127.5).sub_(1.0)


def unit_to_pixels(x: Tensor) -> np.ndarray:
    """float (N, C, H, W) in [-1, 1] (clipped) -> uint8 (N, H, W, C)."""
    scaled = (x.detach().float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
