"""Latent lakes: made by an autoencoder, stored as mean and std, streamed in the scaled
units the model sees."""

from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import Photo, as_folders
from PIL import Image
from test_data_preprocess import encoded, picture

from pipeline import storage
from pipeline.config import PrepareConfig, parse
from pipeline.data import ingest_ray, parquet_shards, retain_stream_local
from pipeline.data.lake import Class, Encoding, Lake, Manifest
from pipeline.data.parquet_shards import Statistics
from pipeline.data.partition_ray import build_partition
from pipeline.data.units import Units
from pipeline.data.vae_encoder import read_statistics
from pipeline.errors import InputError

SCALE = 0.18215


@pytest.fixture
def photos_uri(tmp_path: Path) -> str:
    photos = []
    for number in range(12):
        data = encoded(Image.fromarray(picture(40, 40, number)), "PNG")
        photos.append(Photo(name=f"p{number}.png", wnid=f"class{number % 2}", label=number % 2, data=data))
    return as_folders(tmp_path / "raw", photos)


def latent_config(root: Path, uri: str, weights: str, **prepare) -> PrepareConfig:
    return parse(
        PrepareConfig,
        {
            "storage": str(root),
            "lake": "latents",
            "source": {"kind": "imagefolder", "uri": uri, "held_out": 0.25},
            "encoder": {"kind": "autoencoder_kl", "weights": weights, "batch": 4},
            "prepare": {"size": 32, **prepare},
        },
    )


@pytest.mark.ray
def test_rows_are_the_autoencoders_posterior(tmp_path: Path, photos_uri: str, ray_session: None) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = diffusers.AutoencoderKL(
        **blocks, block_out_channels=(8, 8, 16, 16), norm_num_groups=4, latent_channels=4, sample_size=32
    ).eval()
    vae.save_pretrained(tmp_path / "vae")
    lake = ingest_ray.prepare(latent_config(tmp_path / "runs", photos_uri, str(tmp_path / "vae"))).lake
    assert (
        lake.manifest.kind == "latent"
        and lake.manifest.shape == [4, 4, 4]
        and lake.manifest.encoder.scale == SCALE
    )
    batch = lake.read()
    assert len(batch) == 8 and batch.mean.shape == batch.std.shape == (8, 4, 4, 4)
    for row, name in enumerate(batch.sample_id):
        with Image.open(next(Path(photos_uri).glob(f"*/{name}.png"))) as image:
            pixels = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            posterior = vae.encode(x).latent_dist
        assert torch.allclose(batch.mean[row], posterior.mean[0] * SCALE, atol=2e-3)
        assert torch.allclose(batch.std[row], posterior.std[0] * SCALE, atol=2e-3)
    assert ingest_ray.prepare(latent_config(tmp_path / "runs", photos_uri, str(tmp_path / "vae"))).reused
    with pytest.raises(InputError, match=r"made with encoder.kind = 'autoencoder_kl', got 'identity'"):
        identity = latent_config(tmp_path / "runs", photos_uri, "x").model_dump() | {"encoder": {}}
        ingest_ray.prepare(parse(PrepareConfig, identity))


def test_missing_and_unfitting_weights(tmp_path: Path, photos_uri: str) -> None:
    with pytest.raises(InputError, match=r"encoder.weights: got none, expected the autoencoder_kl folder"):
        parse(PrepareConfig, {"encoder": {"kind": "autoencoder_kl"}})
    with pytest.raises(
        InputError, match=r"nowhere/config.json is missing, expected a diffusers AutoencoderKL folder"
    ):
        ingest_ray.prepare(latent_config(tmp_path / "runs", photos_uri, str(tmp_path / "nowhere")))
    storage.write_json(
        str(tmp_path / "vae/config.json"),
        {"block_out_channels": [8] * 4, "latent_channels": 4, "scaling_factor": SCALE},
    )
    storage.write_bytes(str(tmp_path / "vae/diffusion_pytorch_model.safetensors"), b"")
    with pytest.raises(
        InputError, match=r"got images of 36 pixels, expected a multiple of the autoencoder's 8"
    ):
        ingest_ray.prepare(latent_config(tmp_path / "runs", photos_uri, str(tmp_path / "vae"), size=36))
    assert not (tmp_path / "runs").exists()


MEAN, STD = [1.0, -2.0, 0.5, 0.0], [2.0, 0.5, 1.0, 4.0]


@pytest.mark.parametrize("statistics", [None, Statistics(mean=MEAN, std=STD)])
def test_latents_are_streamed_in_the_models_units(
    tmp_path: Path, unlearn_config, statistics: Statistics | None
) -> None:
    random, made, values = np.random.default_rng(0), [], {}
    for label in range(4):
        mean = random.normal(0, 5, (30, 4, 8, 8)).astype(np.float16)
        std = random.uniform(0.01, 1, (30, 4, 8, 8)).astype(np.float16)
        names = [f"c{label}-{i:02d}" for i in range(30)]
        values |= {name: (mean[i], std[i]) for i, name in enumerate(names)}
        columns = {
            "latent_mean": parquet_shards.tensor_array(mean, "latent"),
            "latent_std": parquet_shards.tensor_array(std, "latent"),
        }
        table = parquet_shards.pa.table(
            {"sample_id": names, "label": parquet_shards.pa.array([label] * 30, "int32"), **columns}
        )
        path = f"data/label={label:05d}/part-00000.parquet"
        made.append(
            parquet_shards.write(
                str(tmp_path / "lake"), path, [table], "latent", (4, 8, 8), label=label, split="train"
            )
        )
    manifest = Manifest(
        name="latents",
        schema_version=1,
        kind="latent",
        shape=[4, 8, 8],
        classes=[Class(label=i, name=str(i), train_rows=30, heldout_rows=0) for i in range(4)],
        shards=made,
        source={},
        preprocessing={},
        encoder=Encoding(kind="autoencoder_kl", digest="0" * 64, scale=SCALE, statistics=statistics),
    )
    lake = Lake(uri=str(tmp_path / "lake"), manifest=manifest)
    config = unlearn_config(
        request={"classes": [1], "exchange": {1: 2}}, optim={"batch_size": 16, "max_steps": 9}
    )
    partition = build_partition(config, lake)
    for batch in [
        *retain_stream_local.retain_stream(partition, 0, 1),
        partition.forget(),
        partition.exchange(),
        lake.read(),
    ]:
        assert batch.std is not None and batch.mean.dtype == batch.std.dtype == torch.float32
        for row, name in enumerate(batch.sample_id):
            mean, std = values[name]
            mean, std = mean.astype(np.float32), std.astype(np.float32)
            if statistics is not None:
                width = np.array(STD, np.float32).reshape(4, 1, 1)
                mean, std = (mean - np.array(MEAN, np.float32).reshape(4, 1, 1)) / width, std / width
            assert np.array_equal(batch.mean[row].numpy(), mean * np.float32(SCALE))
            assert np.array_equal(batch.std[row].numpy(), std * np.float32(SCALE))
    units = Units(SCALE, statistics)
    latents = torch.from_numpy(random.normal(0, 5, (3, 4, 8, 8)).astype(np.float32))
    assert torch.allclose(units.stored(units.mean(latents)), latents, atol=1e-5)
    # what has none is written as it was before there were any
    assert ("statistics" in manifest.model_dump(mode="json")["encoder"]) == (statistics is not None)


def test_statistics_of_another_file_are_refused(tmp_path: Path) -> None:
    tensors = {"mean": torch.zeros(1, 4, 1, 1), "std": torch.ones(1, 4, 1, 1)}
    for name, values, message in (
        ("good", tensors, None),
        ("few", {"mean": tensors["mean"]}, r"holds mean \(1, 4, 1, 1\); expected mean and std of 4 channels"),
        ("wide", {name: torch.ones(1, 32, 1, 1) for name in tensors}, "expected mean and std of 4 channels"),
        ("flat", {**tensors, "std": torch.zeros(1, 4, 1, 1)}, "has a std that is not above 0"),
    ):
        torch.save(values, tmp_path / f"{name}.pt")
        uri = str(tmp_path / f"{name}.pt")
        if message is None:
            assert read_statistics(uri, 4) == Statistics(mean=[0.0] * 4, std=[1.0] * 4)
            continue
        with pytest.raises(InputError, match=message):
            read_statistics(uri, 4)
