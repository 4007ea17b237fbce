"""What the rows of a comparison draw, one under the other, on the same noise: a picture for people."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.reports.png import encoded, grid_pixels

SMALLEST, GAP, TEXT = 48, 1, 13  # pixels: of an image, between two at their own size, of the letters

Drawn = Mapping[int, np.ndarray]  # label -> uint8 (n, H, W, C)


def sheet(rows: Sequence[tuple[str, Drawn]], forgotten: int, class_names: Sequence[str]) -> bytes:
    """A PNG with a line for each of `rows` (its name, its images): all of the label `forgotten`, a gap, the
    first of every other label."""
    labels = [label for label in sorted(rows[0][1]) if label != forgotten]
    blank = np.full_like(rows[0][1][forgotten][:1], 255)
    lines = [
        np.concatenate([images[forgotten], blank, *(images[label][:1] for label in labels)])
        for _, images in rows
    ]
    columns = len(lines[0])
    pixels = Image.fromarray(
        grid_pixels(np.concatenate(lines), columns=columns, gap=GAP, smallest=SMALLEST), "RGBA"
    )
    font = ImageFont.load_default(TEXT)
    left = max(int(font.getlength(name)) for name, _ in rows) + 2 * TEXT
    width, height = (pixels.width + GAP) / columns, pixels.height / len(rows)
    heads = {
        0: class_names[forgotten],
        **{len(rows[0][1][forgotten]) + 1 + index: class_names[label] for index, label in enumerate(labels)},
    }
    # names stand upright: most are longer than an image is wide
    top = max(int(font.getlength(name)) for name in heads.values()) + TEXT
    canvas = Image.new("RGBA", (left + pixels.width, top + pixels.height), "white")
    canvas.paste(pixels, (left, top), pixels)
    draw = ImageDraw.Draw(canvas)
    for index, (name, _) in enumerate(rows):
        draw.text((TEXT, top + (index + 0.5) * height), name, fill="black", font=font, anchor="lm")
    for column, name in heads.items():
        upright = Image.new("RGBA", (top, round(width)), "white")
        ImageDraw.Draw(upright).text((TEXT // 2, width / 2), name, fill="black", font=font, anchor="lm")
        canvas.paste(upright.rotate(90, expand=True), (left + round(column * width), 0))
    return encoded(np.asarray(canvas), "PNG", optimize=True)
