"""Samples for the ADM evaluator (Dhariwal & Nichol 2021), taken as the papers of the model's family sample:
an .npz whose `arr_0` is uint8 (N, H, W, 3).

Images are made in parts of a fixed size, each its own file until all are there: an interrupted job goes on,
and the bytes do not depend on how many workers there are. N images of a part, C channels.
"""

import io
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.diffusion.samplers.table import changed
from models.families.transformer import Transformer
from pipeline import storage
from pipeline.config.evaluate import Protocol
from pipeline.seeding import seed_of

PART = 1000  # images
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same archive whenever it is made


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What is sampled and where it goes: image k has the label k % classes and noise of its own."""

    uri: str
    classes: int
    images: int
    batch: int
    seed: int
    cfg_scale: float
    steps: int
    sampler: Mapping[str, Any]
    part: int = PART

    @property
    def parts(self) -> list[range]:
        return [
            range(first, min(first + self.part, self.images)) for first in range(0, self.images, self.part)
        ]

    def part_uri(self, index: int) -> str:
        return storage.join(f"{self.uri}.parts", f"part-{index:05d}.npy")


def samples_of(
    model: Transformer, settings: Protocol, folder: str, *, seed: int, digest: str, part: int = PART
) -> Samples:
    """The samples of the weights `digest`, under `folder`; absent settings are the published ones."""
    published = dict(model.published)
    facts: dict[str, Any] = {
        "classes": model.num_classes,
        "images": settings.images,
        "batch": settings.batch,
        "seed": seed,
        "cfg_scale": published["cfg_scale"] if settings.cfg_scale is None else settings.cfg_scale,
        "steps": settings.steps or published["steps"],
        "sampler": changed(published, settings.sampler.changes) if settings.sampler else published,
        "part": part,
    }
    name = f"adm-{digest[:12]}-{storage.digest_of(facts)[:8]}.npz"
    return Samples(uri=storage.join(folder, name), **facts)


def make_parts(
    samples: Samples,
    model: Transformer,
    to_pixels: Callable[[Tensor], Tensor],
    indices: Sequence[int],
) -> int:
    """Write those of the parts `indices` that are not there; how many were."""
    made = 0
    for index in indices:
        uri = samples.part_uri(index)
        if storage.exists(uri):
            continue
        block, images = samples.parts[index], []
        for first in range(block.start, block.stop, samples.batch):
            images.append(
                _sampled(samples, model, to_pixels, range(first, min(first + samples.batch, block.stop)))
            )
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate(images))
        storage.write_bytes(uri, buffer.getvalue())
        made += 1
    return made


@torch.no_grad()
def _sampled(
    samples: Samples, model: Transformer, to_pixels: Callable[[Tensor], Tensor], numbers: range
) -> np.ndarray:
    """uint8 (N, H, W, 3), converted as the family's published code does; grey images three times."""
    x = model.sample(
        labels=torch.tensor([k % samples.classes for k in numbers]),
        seeds=[seed_of(samples.seed, "adm", k) for k in numbers],
        cfg_scale=samples.cfg_scale,
        steps=samples.steps,
        sampler=samples.sampler,
    )
    pixels = (127.5 * to_pixels(x).float() + model.black).clamp(0, 255).to(torch.uint8)  # truncated
    if pixels.shape[1] == 1:
        pixels = pixels.expand(-1, 3, -1, -1)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def assemble(samples: Samples) -> None:
    """The archive of all parts, part after part in memory; then the parts are removed."""
    if storage.exists(samples.uri):
        storage.remove(f"{samples.uri}.parts")  # of an assembly that was interrupted at the end
        return
    first = np.load(io.BytesIO(storage.read_bytes(samples.part_uri(0))))
    header = {"descr": "|u1", "fortran_order": False, "shape": (samples.images, *first.shape[1:])}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.npz"
        entry = zipfile.ZipInfo("arr_0.npy", date_time=EPOCH)
        with zipfile.ZipFile(path, "w") as archive, archive.open(entry, "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for index in range(len(samples.parts)):
                file.write(np.load(io.BytesIO(storage.read_bytes(samples.part_uri(index)))).tobytes())
        storage.upload(path, samples.uri)
    storage.remove(f"{samples.uri}.parts")
