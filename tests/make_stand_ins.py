"""Tiny untrained weights in the published formats and a lake of latents: what imagenet_smoke.yaml reads.

python tests/make_stand_ins.py --storage <root> [--images <folder of wnid/*.JPEG>]
python jobs/unlearn_imagenet.py --config jobs/configs/imagenet_smoke.yaml --set storage=<root>
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    import stand_ins

    from pipeline import storage

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--storage", required=True, help="storage root, any URI")
    parser.add_argument("--images", help="folder or URI of <wnid>/*.JPEG; absent: made ones")
    arguments = parser.parse_args()
    for key, place in stand_ins.fill(storage.absolute(arguments.storage), arguments.images).items():
        print(f"{key}={place}")
