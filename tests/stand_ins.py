"""Tiny, untrained weights in the published file formats, and images: what the ImageNet job is tried with.

A DiT as a .pt state dict, an AutoencoderKL and an image classifier as folders of diffusers and transformers,
JPEGs in folders by WNID. `fill` puts them, and the lake made with them, where imagenet_smoke.yaml looks.
"""

import io
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pipeline import storage
from pipeline.data.sources.class_index import read_index

LAKE, SIZE, PIXELS = "imagenet-smoke", "DiT-nano", 32
SHOWN = (207, 208, 205, 206, 209, 281)  # classes that have images; the first two are the request's
EACH = 8  # images of a class


def fill(
    root: str, images: str | None = None, *, size: str = SIZE, pixels: int = PIXELS, kept: bool = True
) -> dict[str, str]:
    """Make the weights, the lake of latents of `images` (absent: made ones), and the model and judge as the
    job finds them by itself (not `kept`: the published weights alone); those by the key that names them.
    """
    from pipeline.config import PrepareConfig, parse
    from pipeline.data import ingest_ray
    from pipeline.runtime import cluster_ray
    from pipeline.weights import import_published, model_folder

    made = storage.join(root, "stand-ins")
    places = {
        f"{section}.weights": storage.join(made, name)
        for section, name in (("model", "dit.pt"), ("encoder", "vae"), ("judge", "judge"))
    }
    storage.write_bytes(places["model.weights"], dit(size))
    upload(places["encoder.weights"], partial(write_autoencoder, pixels=pixels))
    upload(places["judge.weights"], partial(write_judge, pixels=pixels))
    source = {"kind": "imagefolder", "uri": images or write_images(storage.join(made, "images"))}
    lake = {
        "storage": root,
        "lake": LAKE,
        "source": {**source, "classes": "imagenet", "held_out": 0.0},
        "encoder": {"kind": "autoencoder_kl", "weights": places["encoder.weights"]},
        "prepare": {"size": pixels},
    }
    cluster_ray.connect(2)
    try:
        ingest_ray.prepare(parse(PrepareConfig, lake))
    finally:
        cluster_ray.disconnect()
    if not kept:
        return places
    model = model_folder.with_autoencoder(
        model_folder.read(places["model.weights"], "model.weights", size=size),
        *import_published.read_autoencoder(places["encoder.weights"], "encoder.weights", None),
    )
    judge = model_folder.read(places["judge.weights"], "judge.weights")
    for uri, stored in (
        (model_folder.model_uri(root, size, LAKE), model),
        (model_folder.judge_uri(root, LAKE), judge),
    ):
        model_folder.write(uri, stored.config, stored.state, stored.manifest, stored.autoencoder)
    return places


def dit(size: str = SIZE) -> bytes:
    """A state dict with the published names; noise in every parameter, since untrained adaLN-Zero would
    sample nothing but zeros."""
    from models.dit import DiT, dit_config

    net, g = DiT(dit_config(size)), torch.Generator().manual_seed(0)
    net.initialise(g)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=g))
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    return buffer.getvalue()


def write_autoencoder(folder: Path, pixels: int = PIXELS) -> None:
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 16, 16),
            norm_num_groups=4,
            layers_per_block=1,
            sample_size=pixels,
            scaling_factor=0.18215,
        ).save_pretrained(folder)


def write_judge(folder: Path, pixels: int = PIXELS) -> None:
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    names = [line.name.replace("_", " ") for line in read_index("imagenet")]
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=pixels,
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
        "size": {"height": pixels, "width": pixels},
        "resample": 2,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")


def upload(uri: str, write: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            storage.upload(path, storage.join(uri, path.relative_to(folder).as_posix()))


def write_images(uri: str) -> str:
    """JPEGs larger than the lake's images and not square: a colour of the class with smooth noise,
    `<wnid>/<wnid>_<number>.JPEG`."""
    from PIL import Image

    wnids = [line.folder for line in read_index("imagenet")]
    for label in SHOWN:
        for number in range(EACH):
            rough = np.random.default_rng([0, label, number]).normal(0, 40, (6, 8, 3))
            rough += np.random.default_rng(label).integers(40, 216, 3)
            small = Image.fromarray(np.clip(rough, 0, 255).astype(np.uint8))
            buffer = io.BytesIO()
            small.resize((96, 72), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            name = f"{wnids[label]}/{wnids[label]}_{number}.JPEG"
            storage.write_bytes(storage.join(uri, name), buffer.getvalue())
    return uri
