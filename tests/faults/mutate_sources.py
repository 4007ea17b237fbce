"""Damage images, Parquet files, JSON and YAML at random and read them: every image is a row or rejected with
a reason, everything else is read or refused in one line, nothing hangs and nothing takes the memory.

python tests/faults/mutate_sources.py --images 5000 --parquet 300 --texts 200
"""

import argparse
import io
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from pipeline.config import PrepareConfig, Source, load  # noqa: E402
from pipeline.data.image_transforms import to_pixels  # noqa: E402
from pipeline.data.sources import open_source  # noqa: E402
from pipeline.data.sources.base import Unreadable  # noqa: E402
from pipeline.data.sources.class_index import read_index  # noqa: E402
from pipeline.errors import InputError  # noqa: E402

LONGEST_S, LARGEST_KB = 10.0, 1_500_000
FORMATS = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P"),
    "TIFF": ("1", "L", "RGB", "CMYK", "LAB", "I;16", "F"),
    "PPM": ("L", "RGB"),
}


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` cut, with bytes changed (more often near its beginning or end), moved, repeated or zeroed."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = int(len(result) * rng.choice((rng.random(), rng.random() ** 4, 1 - rng.random() ** 4)))
        kind = rng.randrange(6)
        if kind == 0:
            del result[place:]
        elif kind == 1:
            result[place : place + rng.randrange(1, 64)] = b""
        elif kind == 2:
            result[place:place] = result[place : place + 64]
        elif kind == 3:
            result[place : place + 8] = bytes([rng.choice((0, 255))]) * min(8, max(0, len(result) - place))
        elif place < len(result):
            result[place] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    return bytes(result)


def images(count: int, rng: random.Random) -> Iterator[bytes]:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    of_mode = {
        "I;16": Image.fromarray(pixels[..., 0].astype(np.uint16) * 200),
        "LAB": Image.new("LAB", (50, 40)),
    }
    whole = []
    for kind, modes in FORMATS.items():
        for mode in modes:
            buffer = io.BytesIO()
            (of_mode.get(mode) or Image.fromarray(pixels).convert(mode)).save(buffer, kind)
            whole.append(buffer.getvalue())
    return (mutated(rng.choice(whole), rng) for _ in range(count))


def read_images(count: int, rng: random.Random) -> Counter[str]:
    outcome: Counter[str] = Counter()
    for data in images(count, rng):
        start = time.monotonic()
        try:
            assert to_pixels(data, (16, 16, 3)).shape == (16, 16, 3)
            outcome["rows"] += 1
        except Unreadable:
            outcome["rejected"] += 1
        require_quick(start, data)
    assert outcome.total() == count
    return outcome


def read_files(folder: Path, whole: dict[str, bytes], count: int, rng: random.Random) -> Counter[str]:
    """Each of `whole` (by the file's name) damaged in turn and read by what reads such files."""
    outcome: Counter[str] = Counter()
    for number in range(count):
        name = list(whole)[number % len(whole)]
        data = mutated(whole[name], rng)
        (folder / name).write_bytes(data)
        start = time.monotonic()
        try:
            READERS[Path(name).suffix](str(folder / name))
            outcome[f"{name} read"] += 1
        except InputError as error:
            assert "\n" not in " ".join(str(error).split()), error
            outcome[f"{name} refused"] += 1
        require_quick(start, data)
    return outcome


def read_parquet(uri: str) -> None:
    source = open_source(Source.model_validate({"kind": "parquet", "uri": uri, "held_out": 0}))
    items = source.items()
    assert len(list(source.read(items))) == len(items)


READERS: dict[str, Callable[[str], object]] = {
    ".parquet": read_parquet,
    ".json": read_index,
    ".yaml": lambda uri: load(PrepareConfig, uri),
}


def parquet_file() -> bytes:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": bytes([n]) * 99, "path": f"{n}.png"} for n in range(20)]
    table = pa.table({"image": pa.array(rows, image), "label": [n % 3 for n in range(20)]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=7)
    return buffer.getvalue()


def require_quick(start: float, data: bytes) -> None:
    seconds, kilobytes = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if seconds > LONGEST_S or kilobytes > LARGEST_KB:
        raise SystemExit(f"{seconds:.1f} s, {kilobytes} kB for {len(data)} bytes: {data[:2000].hex()}")


def main(argv: list[str] | None = None) -> Counter[str]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for key, count in (("images", 5000), ("parquet", 300), ("texts", 200), ("seed", 0)):
        parser.add_argument(f"--{key}", type=int, default=count)
    arguments = parser.parse_args(argv)
    rng = random.Random(arguments.seed)
    outcome = read_images(arguments.images, rng)
    texts = {
        "index.json": json.dumps({str(n): [f"n{n:08d}", f"class {n}"] for n in range(20)}).encode(),
        "prepare.yaml": (Path(__file__).parents[2] / "jobs/configs/prepare_imagenet.yaml").read_bytes(),
    }
    with tempfile.TemporaryDirectory() as folder:
        outcome += read_files(Path(folder), {"train.parquet": parquet_file()}, arguments.parquet, rng)
        outcome += read_files(Path(folder), texts, arguments.texts, rng)
    return outcome


if __name__ == "__main__":
    for name, count in sorted(main().items()):
        print(f"{count:6d} {name}")
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024:6d} MB at most")
