"""From raw image to the pixels of a lake row: decoded, upright, 8 bit, scaled and cropped as DiT's training
does."""

import io

import numpy as np
from PIL import Image, ImageOps

from pipeline.data.sources.base import Raw

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
ORIENTATION = 0x0112  # EXIF tag
LARGEST_ASPECT = 64  # beyond it the scaled image before the crop would not fit in memory


class Unreadable(ValueError):
    """The image cannot be used; the message is the reason that rejected.parquet names."""


def to_pixels(raw: Raw, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 (H, W, C) of exactly `shape` (square, 1 or 3 channels). Raises `Unreadable`."""
    size, _, channels = shape
    if isinstance(raw, np.ndarray) and raw.shape == shape:
        return raw
    image = (
        Image.fromarray(raw.squeeze(-1) if raw.shape[-1] == 1 else raw)
        if isinstance(raw, np.ndarray)
        else decode(raw)
    )
    pixels = np.asarray(center_crop(as_channels(image, channels), size))
    return pixels.reshape(shape)


def decode(data: bytes) -> Image.Image:
    """The whole image, upright (EXIF orientation applied). Raises `Unreadable`."""
    if not data:
        raise Unreadable("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
    except Image.UnidentifiedImageError as error:
        raise Unreadable(f"not an image in one of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise Unreadable(f"too large: {error}") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        MemoryError,
    ) as error:
        # decoders of broken data raise nearly anything
        raise Unreadable(f"damaged: {type(error).__name__}: {error}") from error
    if max(image.size) > LARGEST_ASPECT * min(image.size):
        raise Unreadable(
            f"got {image.size[0]}x{image.size[1]} pixels, expected sides within a factor {LARGEST_ASPECT}"
        )
    try:
        upright = image.getexif().get(ORIENTATION, 1) == 1
        return image if upright else ImageOps.exif_transpose(image)  # which would copy an upright one
    except Exception:  # the pixels are whole: broken EXIF data says nothing of how to turn them
        return image


def as_channels(image: Image.Image, channels: int) -> Image.Image:
    """`image` as 8-bit grey (1) or RGB (3): CMYK and palettes converted, alpha dropped, 16
    bits scaled to 8."""
    # Pillow's own conversion clips 16-bit values at 255 instead of scaling them
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(np.round(values / 257), 0, 255).astype(np.uint8))
    if image.mode == "F":
        raise Unreadable("floating-point pixels have no known range; expected 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The centre square of `size`, after halving by box filter while the short side is at least twice that,
    then bicubic (facebookresearch/DiT train.py center_crop_arr, from openai/guided-diffusion)."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize(
        (round(image.size[0] * scale), round(image.size[1] * scale)), resample=Image.Resampling.BICUBIC
    )
    left, top = (image.size[0] - size) // 2, (image.size[1] - size) // 2
    return image.crop((left, top, left + size, top + size))
