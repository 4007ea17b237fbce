"""From raw image to the pixels of a lake row."""

import numpy as np

from pipeline.data.sources.base import Raw


class Unreadable(ValueError):
    """The image cannot be used; the message is the reason that rejected.parquet names."""


def to_pixels(raw: Raw, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 (H, W, C) of exactly `shape`. Raises `Unreadable`."""
    if isinstance(raw, np.ndarray) and raw.dtype == np.uint8 and raw.shape == shape:
        return raw
    raise Unreadable(f"got an image of shape {getattr(raw, 'shape', None)}, expected {shape}")
