"""Samples for the ADM evaluator: an archive that numpy opens, the same bytes whoever made which part."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_dit
from torch import Tensor

from pipeline import storage
from pipeline.config.evaluate import Protocol
from pipeline.evaluation import adm


def made(folder: Path, family: str, world_size: int, **options: int) -> bytes:
    model = tiny_dit(dtype=torch.float32, family=family)
    settings = Protocol(protocol="adm", images=10, batch=2, steps=3)
    samples = adm.samples_of(model, settings, str(folder), seed=0, digest="d" * 64, part=4)
    for rank in reversed(range(world_size)):
        adm.make_parts(samples, model, lambda x: x, range(rank, len(samples.parts), world_size))
    adm.assemble(samples)
    assert not storage.listing(f"{samples.uri}.parts")
    return storage.read_bytes(samples.uri)


@pytest.mark.parametrize("family", ["dit", "sit", "repa"])
def test_the_archive_is_what_the_evaluator_reads(tmp_path: Path, family: str) -> None:
    one, two = made(tmp_path / "1", family, 1), made(tmp_path / "2", family, 2)
    assert one == two
    (path,) = (tmp_path / "1").glob("*.npz")
    with np.load(path) as archive:
        assert archive.files == ["arr_0"]
        images = archive["arr_0"]
    assert images.dtype == np.uint8 and images.shape == (10, 4, 4, 3)
    assert (images[..., 0] == images[..., 2]).all() and len(np.unique(images)) > 5


def test_an_interrupted_job_makes_what_is_missing(tmp_path: Path) -> None:
    model = tiny_dit(dtype=torch.float32, family="sit")
    settings = Protocol(protocol="adm", images=6, batch=2, steps=2)
    samples = adm.samples_of(model, settings, str(tmp_path), seed=0, digest="d" * 64, part=2)
    calls: list[int] = []

    def counting(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x

    pixels: Callable[[Tensor], Tensor] = counting
    assert adm.make_parts(samples, model, pixels, [1]) == 1
    assert adm.make_parts(samples, model, pixels, [0, 1, 2]) == 2
    assert calls == [2, 2, 2]
    adm.assemble(samples)
    assert storage.exists(samples.uri)
    storage.write_bytes(samples.part_uri(0), b"left by an assembly that was killed at its end")
    adm.assemble(samples)
    assert not storage.listing(f"{samples.uri}.parts")
