"""Images as one PNG."""

import io

import numpy as np
from PIL import Image


def grid_png(images: np.ndarray, *, columns: int | None = None, gap: int = 1, smallest: int = 0) -> bytes:
    """uint8 (N, H, W, C), C 1 or 3, as one PNG, `columns` to a row (absent: about a square, full rows where that can be).

    `gap` pixels lie between two images. Images narrower than `smallest` are enlarged by a whole number, pixels kept sharp.
    """
    count, height, width, channels = images.shape
    if channels not in (1, 3) or images.dtype != np.uint8 or not count:
        raise ValueError(f"images: got {images.dtype} {images.shape}, expected uint8 (N, H, W, 1 or 3) with N of at least 1")
    square = int(np.ceil(np.sqrt(count)))
    columns = columns or next((n for n in range(square, 2 * square + 1) if count % n == 0), square)
    scale = max(1, -(-smallest // width))
    height, width, gap = height * scale, width * scale, gap * scale
    rows = -(-count // columns)
    canvas = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), np.uint8)  # RGBA: gaps are transparent
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        enlarged = image.repeat(scale, axis=0).repeat(scale, axis=1)
        canvas[top : top + height, left : left + width, :3] = enlarged
        canvas[top : top + height, left : left + width, 3] = 255
    target = io.BytesIO()
    Image.fromarray(canvas, "RGBA").save(target, "PNG", optimize=True)
    return target.getvalue()
