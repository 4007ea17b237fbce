"""The digits as a folder of PNGs in which a few images lie many times: a lake whose model memorises them.

python tests/make_duplicated_digits.py [--storage runs] [--copies 64] [--digits 3 5 8]
python jobs/prepare_data.py --config jobs/configs/prepare_digits.yaml --set lake=digits-duplicated \\
    --set source.kind=imagefolder --set source.uri=runs/duplicated-digits/images
python jobs/pretrain.py --config jobs/configs/pretrain_digits.yaml --set lake=digits-duplicated

One training image of each of the digits. Beside the images lies a list of sample ids for each, the image and
its copies: what jobs/configs/compare_samples_digits.yaml asks to forget.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import storage
from pipeline.data.sources.digits import Digits

FOLDER = "duplicated-digits"  # under the storage root
HELD_OUT = 0.2  # as in prepare_digits.yaml


def write(root: str, copies: int, digits: Sequence[int]) -> dict[int, list[str]]:
    """Leave images and lists under `root`; the sample ids of each digit's list, the image's own first."""
    source = Digits(HELD_OUT)
    items = source.items()
    chosen = {
        digit: next(item for item in items if item.label == digit and item.split == "train")
        for digit in digits
    }
    ids = {
        digit: [item.sample_id, *(f"{item.sample_id}-copy-{k:04d}" for k in range(1, copies))]
        for digit, item in chosen.items()
    }
    for item, pixels in zip(items, source.read(items), strict=True):
        assert isinstance(pixels, np.ndarray)
        buffer = io.BytesIO()
        Image.fromarray(pixels[..., 0]).save(buffer, "PNG")
        split = "train" if item.split == "train" else "val"
        folder = storage.join(root, FOLDER, "images", split, str(item.label))
        names = ids[item.label] if chosen.get(item.label) == item else [item.sample_id]
        for name in names:
            storage.write_bytes(storage.join(folder, f"{name}.png"), buffer.getvalue())
    for digit, names in ids.items():
        storage.write_text(storage.join(root, FOLDER, f"{digit}.txt"), "\n".join(names) + "\n")
    return ids


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--storage", default="runs", help="storage root, any URI")
    parser.add_argument("--copies", type=int, default=64, help="how often each of the images is there")
    parser.add_argument("--digits", type=int, nargs="+", default=[3, 5, 8], help="an image of each")
    arguments = parser.parse_args()
    for digit, names in write(
        storage.absolute(arguments.storage), arguments.copies, arguments.digits
    ).items():
        print(f"{digit}: {names[0]}, {len(names)} times")
