"""From raw image to the pixels of a lake row: decoded, upright, 8 bit, scaled and cropped as DiT's training
does."""

import io

import numpy as np
from PIL import Image, ImageCms, ImageOps

from pipeline.data.sources.base import Raw, Unreadable

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
ORIENTATION = 0x0112  # EXIF tag
LARGEST_ASPECT = 64  # beyond it the scaled image before the crop would not fit in memory
LARGEST_PIXELS = 100_000_000  # a decoded one is up to 4 bytes, and is copied where it is turned or converted
LFS_POINTER = b"version https://git-lfs"
BAND_ROWS = 1024  # of a 16-bit image brought to 8 bits at once


def to_pixels(raw: Raw, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 (H, W, C) of exactly `shape` (square, 1 or 3 channels). Raises `Unreadable`."""
    size, _, channels = shape
    if isinstance(raw, Unreadable):
        raise raw
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
        require_pixels(image.size)  # before they are in memory
        image.load()
    except Unreadable:
        raise
    except Image.UnidentifiedImageError as error:
        raise Unreadable(f"not an image in one of {', '.join(FORMATS)}{_instead(data)}") from error
    except Image.DecompressionBombError as error:
        raise Unreadable(f"too large: {error}") from error
    except Exception as error:  # decoders of broken data raise nearly anything
        raise Unreadable(f"damaged: {type(error).__name__}: {error}") from error
    require_pixels(image.size)  # some formats know only now
    if max(image.size) > LARGEST_ASPECT * min(image.size):
        raise Unreadable(
            f"got {image.size[0]}x{image.size[1]} pixels, expected sides within a factor {LARGEST_ASPECT}"
        )
    try:
        upright = image.getexif().get(ORIENTATION, 1) == 1
        return image if upright else ImageOps.exif_transpose(image)  # which would copy an upright one
    except Exception:  # the pixels are whole: broken EXIF data says nothing of how to turn them
        return image


def require_pixels(size: tuple[int, int]) -> None:
    width, height = size
    if not 0 < width * height <= LARGEST_PIXELS:
        raise Unreadable(f"got {width}x{height} pixels, expected 1 to {LARGEST_PIXELS} of them")


def as_channels(image: Image.Image, channels: int) -> Image.Image:
    """`image` as 8-bit grey (1) or RGB (3): CMYK, LAB and palettes converted, alpha dropped, 16
    bits scaled to 8. Raises `Unreadable` for a mode that has no such conversion."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode:
        return image
    if image.mode == "F":
        raise Unreadable("floating-point pixels have no known range; expected 8 or 16 bits")
    try:
        # Pillow's own conversion clips 16-bit values at 255 instead of scaling them
        if image.mode.startswith("I"):
            image = _eight_bits(image)
        elif image.mode == "LAB":
            image = _lab_to_rgb(image)
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image if image.mode == mode else image.convert(mode)
    except Exception as error:
        raise Unreadable(f"no conversion from {image.mode} to {mode} ({error})") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Values 0..65535 to the nearest of 0..255, some rows at a time: as 32-bit numbers they are twice or four
    times as large as the image."""
    values = np.asarray(image)
    pixels = np.empty(values.shape, np.uint8)
    for first in range(0, len(values), BAND_ROWS):
        band = np.clip(values[first : first + BAND_ROWS], 0, 65535).astype(np.uint32)
        pixels[first : first + BAND_ROWS] = (band + 128) // 257
    return Image.fromarray(pixels)


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # None where it was done in place
    return converted


def _instead(data: bytes) -> str:
    return ": it is a Git LFS pointer, fetch the file itself" if data.startswith(LFS_POINTER) else ""


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The centre square of `size`, after halving by box filter while the short side is at least twice that,
    then bicubic (facebookresearch/DiT train.py center_crop_arr, from openai/guided-diffusion).

    Of a wide image the columns outside the square are left out of the second of Pillow's two passes, which
    goes along the columns: the pixels stay the same.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), resample=Image.Resampling.BOX)
    scale, (wide, high) = size / min(image.size), image.size
    width, height = round(wide * scale), round(high * scale)
    left, top = (width - size) // 2, (height - size) // 2
    if wide > high:
        image = image.resize((width, high), resample=Image.Resampling.BICUBIC)
        image = image.crop((left, 0, left + size, high))
        return image.resize((size, size), resample=Image.Resampling.BICUBIC)
    image = image.resize((width, height), resample=Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))
