"""Pixels of a lake row against an independent formula, for every kind of image file met in the wild."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.data.image_transforms import Unreadable, as_channels, center_crop, to_pixels


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A smooth colour picture with some noise: uint8 (H, W, 3)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (7 + i) + i) + np.cos(y / (11 - i)) for i in range(3)]
    return np.clip(np.stack(waves, -1) * 50 + 128 + random.normal(0, 8, (height, width, 3)), 0, 255).astype(
        np.uint8
    )


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reference(rgb: Image.Image, size: int) -> np.ndarray:
    """The same transform said another way: the number of halvings first, then one crop window."""
    halvings = max(0, math.floor(math.log2(min(rgb.size) / size)))
    width, height = rgb.size
    for _ in range(halvings):
        width, height = width // 2, height // 2
        rgb = rgb.resize((width, height), Image.Resampling.BOX)
    short = min(width, height)
    scaled = rgb.resize((round(width * size / short), round(height * size / short)), Image.Resampling.BICUBIC)
    pixels = np.asarray(scaled)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


@pytest.mark.parametrize(
    ("width", "height"), [(500, 375), (375, 500), (64, 64), (40, 90), (127, 128), (1031, 517), (20, 33)]
)
def test_scaling_and_cropping(width: int, height: int) -> None:
    image = Image.fromarray(picture(width, height))
    assert np.array_equal(to_pixels(encoded(image, "PNG"), (64, 64, 3)), reference(image, 64))


@pytest.mark.parametrize("channels", [1, 3])
def test_columns_that_are_left_out_of_the_second_pass_change_no_pixel(channels: int) -> None:
    """Noise, which scaling overshoots the most; any size of image and square."""
    random = np.random.default_rng(channels)
    for _ in range(30):
        high, size = random.integers(9, 200), int(random.choice([8, 33, 64, 96]))
        wide = high + random.integers(1, 300)
        image = Image.fromarray(random.integers(0, 256, (high, wide, 3), np.uint8))
        image = image if channels == 3 else image.convert("L")
        pixels = np.asarray(center_crop(image, size))
        assert np.array_equal(pixels, reference(image, size)), (image.size, size)


def test_exact_halvings_are_plain_means() -> None:
    pixels = picture(256, 256)
    means = pixels.reshape(128, 2, 128, 2, 3).mean((1, 3))
    # two passes, each rounded
    assert np.abs(to_pixels(encoded(Image.fromarray(pixels), "PNG"), (128, 128, 3)) - means).max() <= 1


def test_grey_is_three_equal_channels() -> None:
    grey = Image.fromarray(picture(80, 70)[..., 0])
    pixels = to_pixels(encoded(grey, "JPEG", quality=95), (64, 64, 3))
    assert np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(pixels[..., 0], pixels[..., 2])
    assert np.array_equal(to_pixels(encoded(grey, "PNG"), (64, 64, 1)), reference(grey, 64)[..., None])


def test_cmyk_comes_out_in_its_own_colours() -> None:
    rgb = Image.fromarray(picture(64, 64))
    pixels = to_pixels(encoded(rgb.convert("CMYK"), "JPEG", quality=100, subsampling=0), (64, 64, 3))
    assert np.abs(pixels.astype(int) - np.asarray(rgb).astype(int)).mean() < 4


@pytest.mark.parametrize("transparency", [None, 0])
def test_palette(transparency: int | None) -> None:
    palette = Image.fromarray(picture(64, 64)).quantize(200)
    options = {} if transparency is None else {"transparency": transparency}
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(to_pixels(encoded(palette, "PNG", **options), (64, 64, 3)), expected)


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, 1), (8, 3)])
def test_exif_rotation_is_undone(orientation: int, turn: int) -> None:
    upright = picture(96, 64)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.rot90(upright, turn).copy())
    assert np.array_equal(
        to_pixels(encoded(stored, "PNG", exif=exif.tobytes()), (64, 64, 3)), upright[:, 16:80]
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    pixels = to_pixels(encoded(Image.fromarray(values), kind), (64, 64, 1))[..., 0]
    assert pixels.min() == 0 and pixels.max() == 255 and np.array_equal(pixels, np.round(values / 257))


def test_one_bit_and_alpha() -> None:
    bits = Image.fromarray(picture(64, 64)[..., 0]).convert("1")
    assert set(np.unique(to_pixels(encoded(bits, "PNG"), (64, 64, 3)))) == {0, 255}
    opaque = Image.fromarray(picture(64, 64))
    with_alpha = opaque.copy()
    with_alpha.putalpha(255)
    assert np.array_equal(to_pixels(encoded(with_alpha, "PNG"), (64, 64, 3)), np.asarray(opaque))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not an image at all", "not an image"),
        (encoded(Image.fromarray(picture(200, 200)), "JPEG")[:2000], "damaged"),
        (encoded(Image.fromarray(picture(64, 64)), "PNG")[:-300], "damaged"),
        (encoded(Image.new("L", (1, 5000)), "PNG"), "expected sides within"),
        (encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), "floating-point"),
    ],
)
def test_what_cannot_be_used_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        to_pixels(data, (64, 64, 3))


def test_lab_comes_out_in_its_own_colours() -> None:
    rgb = Image.fromarray(picture(64, 64))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(rgb, *profiles, outputMode="LAB")
    data = encoded(lab, "TIFF")
    assert np.abs(to_pixels(data, (64, 64, 3)).astype(int) - np.asarray(rgb).astype(int)).mean() < 3
    grey = np.asarray(rgb.convert("L")).astype(int)
    assert np.abs(to_pixels(data, (64, 64, 1))[..., 0] - grey).mean() < 3


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBa", "HSV", "YCbCr", "I;16B", "RGBX", "La"])
def test_every_mode_has_one_conversion_or_a_reason(mode: str) -> None:
    for channels in (1, 3):
        try:
            converted = as_channels(Image.new(mode, (5, 4)), channels)
        except Unreadable as error:
            assert str(error).startswith(f"no conversion from {mode} to ")
        else:
            assert converted.mode == {1: "L", 3: "RGB"}[channels] and converted.size == (5, 4)


def test_an_image_that_is_small_on_disk_and_large_in_memory_is_refused_unread() -> None:
    """A header that says 16,000 x 10,000 pixels of 16 bits, and no pixels behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16_000, 10_000, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(Unreadable, match="got 16000x10000 pixels"),
    ):
        to_pixels(data, (8, 8, 3))


def test_a_pointer_in_place_of_an_image_is_named() -> None:
    with pytest.raises(Unreadable, match="it is a Git LFS pointer"):
        to_pixels(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", (8, 8, 3))
