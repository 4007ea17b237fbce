"""A lake of latents that somebody extracted before: the published layout of LightningDiT's VA-VAE."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from pipeline import config as configuration
from pipeline.data import ingest_ray
from pipeline.data.ingest import make_shard
from pipeline.errors import InputError
from pipeline.runs.run_weights import require_statistics

SHAPE = (3, 2, 2)
SHARDS = "latents_rank00_shard000.safetensors", "latents_rank01_shard000.safetensors"


def write(
    folder: Path, name: str = SHARDS[0], *, seed: int = 0, rows: int = 12, **changes: Any
) -> Mapping[str, Any]:
    g = np.random.default_rng(seed)
    tensors = {
        "latents": g.normal(2, 3, (rows, *SHAPE)).astype(np.float32),
        "latents_flip": g.normal(2, 3, (rows, *SHAPE)).astype(np.float32),
        "labels": (np.arange(rows) % 3).astype(np.int64),
    }
    tensors = {key: value for key, value in (tensors | changes).items() if value is not None}
    safetensors.numpy.save_file(tensors, folder / name)
    return tensors


def write_statistics(folder: Path) -> None:
    statistics = {"mean": torch.full((1, 3, 1, 1), 2.0), "std": torch.full((1, 3, 1, 1), 3.0)}
    torch.save(statistics, folder / "latents_stats.pt")


def prepared(tmp_path: Path, **more: Any) -> ingest_ray.Prepared:
    values: dict[str, Any] = {"held_out": 0.25} | more.pop("source", {})
    config = configuration.parse_given(
        configuration.PrepareConfig,
        {
            "storage": str(tmp_path / "runs"),
            "lake": "vavae",
            "source": {"kind": "latents", "uri": str(tmp_path / "published"), **values},
            **more,
        },
    )
    return ingest_ray.prepare(config, run=lambda tasks: map(make_shard, tasks))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    folder = tmp_path / "published"
    folder.mkdir()
    write_statistics(folder)
    return folder


def test_every_latent_and_its_mirror_image_in_the_models_units(tmp_path: Path, published: Path) -> None:
    shards = {name: write(published, name, seed=seed) for seed, name in enumerate(SHARDS)}
    lake = prepared(tmp_path, prepare={"flip": True, "size": 32}).lake
    manifest = lake.manifest
    assert (manifest.kind, manifest.shape) == ("latent", list(SHAPE))
    assert manifest.encoder.statistics is not None
    assert (manifest.encoder.statistics.mean, manifest.encoder.statistics.std) == ([2.0] * 3, [3.0] * 3)
    assert [(one.name, one.train_rows, one.heldout_rows) for one in manifest.classes] == [
        (name, 12, 2) for name in "012"
    ]
    batch, held_out = lake.read([1]), lake.read([1], "heldout")
    assert batch.std is not None and not batch.std.any() and set(batch.y.tolist()) == {1}
    assert not any(name.endswith("~flip") for name in held_out.sample_id)
    for name, mean in zip(batch.sample_id + held_out.sample_id, torch.cat([batch.mean, held_out.mean])):
        shard, _, row = name.removesuffix("~flip").rpartition("-")
        tensor = shards[f"{shard}.safetensors"]["latents_flip" if name.endswith("~flip") else "latents"]
        wanted = (torch.from_numpy(tensor[int(row)]) - 2) / 3
        assert torch.allclose(mean, wanted, atol=2e-3)  # stored in 16 bits
    assert prepared(tmp_path, prepare={"flip": True, "size": 32}).reused
    require_statistics({"family": "lightningdit", "size": "LightningDiT-nano"}, lake)


def test_a_latent_that_is_not_finite_is_rejected_by_name(tmp_path: Path, published: Path) -> None:
    latents = np.ones((12, *SHAPE), np.float32)
    latents[4, 0, 0, 0] = np.inf
    write(published, latents=latents)
    assert prepared(tmp_path).lake.manifest.rejected == 1


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"labels": None}, {}, r"holds latents, latents_flip; expected latents, latents_flip and labels"),
        (
            {"latents": np.ones((12, 4), np.float32)},
            {},
            r"holds latents \(12, 4\) F32, .* expected latents \(N",
        ),
        ({"labels": np.zeros(5, np.int64)}, {}, r"labels \(5,\) I64; expected .* N whole labels"),
        (
            {"latents_flip": None},
            {"prepare": {"flip": True}},
            r"prepare\.flip: got true, but .* no latents_flip",
        ),
        ({}, {"source": {"statistics": "none.pt"}}, r"source\.statistics: nothing at .*none\.pt"),
        ({}, {"source": {"uri": "memory://somewhere"}}, r"source\.uri: .* a folder that every worker sees"),
        ({}, {"source": {"uri": "nowhere"}}, r"nowhere"),
        ({}, {"encoder": {"kind": "autoencoder_kl", "weights": "w"}}, r"encoder\.kind"),
        ({}, {"prepare": {"channels": 3}}, r"prepare\.channels"),
        ({}, {"source": {"classes": ["a", "b"]}}, r"label 2"),
    ],
)
def test_what_is_no_such_folder_is_refused(
    tmp_path: Path,
    published: Path,
    changes: dict[str, Any],
    settings: dict[str, Any],
    message: str,
) -> None:
    write(published, **changes)
    with pytest.raises(InputError, match=message) as refusal:
        prepared(tmp_path, **settings)
    assert "\n" not in str(refusal.value) and not (tmp_path / "runs").exists()


def test_damaged_files_and_statistics(tmp_path: Path, published: Path) -> None:
    write(published)
    statistics = {"mean": torch.zeros(5), "std": torch.ones(5)}
    torch.save(statistics, published / "latents_stats.pt")
    with pytest.raises(InputError, match=r"source\.statistics: .* expected mean and std of 3 channels"):
        prepared(tmp_path)
    (published / SHARDS[1]).write_bytes(b"no tensors")
    with pytest.raises(InputError, match="is no safetensors file or a damaged one"):
        prepared(tmp_path)
    write(published, SHARDS[1], latents=np.ones((12, 4, 2, 2), np.float32), latents_flip=None)
    with pytest.raises(InputError, match="expected one shape"):
        prepared(tmp_path)
