"""Tiny, untrained weights in the published file formats, and images: what the whole ImageNet job is tried
with where there is nothing.

A DiT as a .pt state dict, an AutoencoderKL and an image classifier as folders of diffusers and transformers,
JPEGs in folders by WNID.
"""

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pipeline import storage
from pipeline.data.sources.base import read_index
from pipeline.errors import InputError
from pipeline.seeding import generator

SIZE, PIXELS, DONE = "DiT-nano", 32, "made.json"
SHOWN = (207, 208, 205, 206, 209, 281)  # classes of the images that are made; the first two are the request's
EACH = 8  # images of a class


def make(uri: str, seed: int, *, images: bool) -> dict[str, str]:
    """Make what is missing under `uri`; the places by name: model, encoder, judge and,
    with `images`, images."""
    places = {
        name: storage.join(uri, path)
        for name, path in (("model", "dit.pt"), ("encoder", "vae"), ("judge", "judge"), ("images", "images"))
    }
    if not storage.exists(storage.join(uri, DONE)):
        try:
            import diffusers  # noqa: F401
            import transformers  # noqa: F401
        except ImportError as error:
            raise InputError(
                "stand_in: needs diffusers and transformers: pip install -e '.[diffusers]' in the checkout"
            ) from error
        storage.write_bytes(places["model"], _dit(seed))
        _folder(places["encoder"], _autoencoder)
        _folder(places["judge"], _judge)
        if images:
            _images(places["images"], seed)
        storage.write_json(storage.join(uri, DONE), {"seed": seed})
    return places


def _dit(seed: int) -> bytes:
    """A state dict with the published names; noise in every parameter, since untrained adaLN-Zero would draw
    nothing but zeros."""
    from models.dit import DiT, dit_config

    net, g = DiT(dit_config(SIZE)), generator(seed, "stand-in")
    net.initialise(g)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=g))
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    return buffer.getvalue()


def _autoencoder(folder: Path) -> None:
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 16, 16),
            norm_num_groups=4,
            layers_per_block=1,
            sample_size=PIXELS,
            scaling_factor=0.18215,
        )
    made.save_pretrained(folder)  # type: ignore[attr-defined]


def _judge(folder: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    names = [line.partition(" ")[2].replace("_", " ") for line in read_index("imagenet")]
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=PIXELS,
        patch_size=8,
        id2label=dict(enumerate(names)),
        label2id={name: label for label, name in enumerate(names)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTForImageClassification(config).save_pretrained(folder)
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": PIXELS, "width": PIXELS},
        "resample": 2,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")


def _folder(uri: str, fill: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        fill(Path(temporary))
        for path in sorted(Path(temporary).rglob("*")):
            if path.is_file():
                storage.upload(path, storage.join(uri, path.relative_to(temporary).as_posix()))


def _images(uri: str, seed: int) -> None:
    """JPEGs larger than the lake's images and not square: a colour of the class with smooth noise,
    `<wnid>/<wnid>_<number>.JPEG`."""
    from PIL import Image

    wnids = [line.partition(" ")[0] for line in read_index("imagenet")]
    for label in SHOWN:
        for number in range(EACH):
            random = np.random.default_rng([seed, label, number])
            colour = np.random.default_rng(label).integers(40, 216, 3)
            rough = random.normal(0, 40, (6, 8, 3)) + colour
            image = Image.fromarray(np.clip(rough, 0, 255).astype(np.uint8)).resize(
                (96, 72), Image.Resampling.BICUBIC
            )
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=90)
            storage.write_bytes(
                storage.join(uri, wnids[label], f"{wnids[label]}_{number}.JPEG"), buffer.getvalue()
            )
