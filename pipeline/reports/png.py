"""Images as one grid: a PNG, or an address that holds the picture itself."""

import base64
import io

import numpy as np
from PIL import Image


def grid_png(images: np.ndarray, *, columns: int | None = None, gap: int = 1, smallest: int = 0) -> bytes:
    """uint8 (N, H, W, C), C 1 or 3, as one PNG, `columns` to a row (absent: about a square, full rows where
    that can be).

    `gap` pixels lie between two images. Images narrower than `smallest` are enlarged by a whole number,
    pixels kept sharp.
    """
    return encoded(grid_pixels(images, columns=columns, gap=gap, smallest=smallest), "PNG", optimize=True)


def grid_address(images: np.ndarray) -> str:
    """The grid of `images` as a data: address for a page: PNG for small ones, WebP for photographs, a tenth
    of the bytes."""
    grid = grid_pixels(images, columns=None, gap=max(1, images.shape[2] // 16), smallest=0)
    kind, data = (
        ("png", encoded(grid, "PNG", optimize=True))
        if is_small(images)
        else ("webp", encoded(grid, "WEBP", quality=90))
    )
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def is_small(images: np.ndarray) -> bool:
    """Whether single pixels are worth seeing when the images are enlarged."""
    return int(images.shape[2]) <= 64


def encoded(grid: np.ndarray, kind: str, **options: bool | int) -> bytes:
    """RGBA (H, W, 4) as a file of this kind."""
    target = io.BytesIO()
    Image.fromarray(grid, "RGBA").save(target, kind, **options)
    return target.getvalue()


def grid_pixels(images: np.ndarray, *, columns: int | None, gap: int, smallest: int) -> np.ndarray:
    """What `grid_png` writes, as RGBA (H, W, 4)."""
    count, height, width, channels = images.shape
    if channels not in (1, 3) or images.dtype != np.uint8 or not count:
        raise ValueError(
            f"images: got {images.dtype} {images.shape}, expected uint8 (N, H, W, 1 or 3) with N of at"
            " least 1"
        )
    square = int(np.ceil(np.sqrt(count)))
    columns = columns or next((n for n in range(square, 2 * square + 1) if count % n == 0), square)
    scale = max(1, -(-smallest // width))
    height, width, gap = height * scale, width * scale, gap * scale
    rows = -(-count // columns)
    # RGBA: gaps are transparent
    canvas = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        enlarged = image.repeat(scale, axis=0).repeat(scale, axis=1)
        canvas[top : top + height, left : left + width, :3] = enlarged
        canvas[top : top + height, left : left + width, 3] = 255
    return canvas
