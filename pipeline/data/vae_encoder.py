"""The encoder of a latent lake: found, described and digested without loading it; used inside the workers."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import config, fetching, storage
from pipeline.config.prepare import LATENTS
from pipeline.data import parquet_shards
from pipeline.data.lake import Encoding
from pipeline.data.parquet_shards import Kind, Statistics
from pipeline.data.sources import open_source
from pipeline.data.sources.latents import Latents
from pipeline.errors import InputError
from pipeline.runtime.precision import use_tf32


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a lake's rows will be. `weights` is None for what the source itself holds: pixels, or latents."""

    kind: Kind
    shape: tuple[int, int, int]
    encoding: Encoding
    weights: str | None = None
    batch: int = 1


def plan_encoding(settings: config.PrepareConfig) -> Plan:
    """Pixels, the latents of the autoencoder that the configuration names, or those that the source holds.
    Raises `InputError` when there is no such folder, or for latents without statistics."""
    if settings.source.kind == LATENTS:
        return _plan_latents(settings)
    if settings.encoder.kind == "identity":
        return Plan(kind="image", shape=settings.prepare.shape, encoding=Encoding())
    from models import latents

    location = fetching.locate(settings.encoder.weights or "")
    uri = _folder(location)
    files = [storage.join(uri, name) for name in (latents.CONFIG_FILE, latents.WEIGHTS_FILE)]
    missing = [file for file in files if not storage.exists(file)]
    if missing:
        raise InputError(
            f"encoder.weights: {missing[0]} is missing, expected a diffusers AutoencoderKL folder with"
            f" {latents.CONFIG_FILE} and {latents.WEIGHTS_FILE}, such as a copy of stabilityai/sd-vae-ft-mse"
        )
    if settings.prepare.channels != 3:
        raise InputError(
            f"prepare.channels: got {settings.prepare.channels}, expected 3: the autoencoder takes colour"
            " images"
        )
    try:
        description = json.loads(storage.read_bytes(files[0]))
        shape = latents.latent_shape(description, settings.prepare.size)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"encoder: {uri} does not fit ({error}); mend prepare.size or encoder.weights"
        ) from error
    digest = storage.digest_of([storage.sha256(storage.read_bytes(file)) for file in files])
    statistics = read_statistics(settings.encoder.statistics, shape[0])
    # the published factor of latents with statistics is 1
    scale = description["scaling_factor"] if statistics is None else 1.0
    encoding = Encoding(kind=settings.encoder.kind, digest=digest, scale=scale, statistics=statistics)
    return Plan(kind="latent", shape=shape, encoding=encoding, weights=location, batch=settings.encoder.batch)


def _plan_latents(settings: config.PrepareConfig) -> Plan:
    """The source's own latents, samples of the encoder's posterior: their rows have no deviation."""
    source = open_source(settings.source)
    assert isinstance(source, Latents)
    shape = source.shape(mirrored=settings.prepare.flip)
    if not storage.exists(source.statistics):
        raise InputError(
            f"source.statistics: nothing at {source.statistics}, expected the mean and std of each of"
            f" {shape[0]} channels, without which no model of these latents can be given them"
        )
    statistics = read_statistics(source.statistics, shape[0], "source.statistics")
    return Plan(kind="latent", shape=shape, encoding=Encoding(kind=LATENTS, statistics=statistics))


def read_statistics(uri: str | None, channels: int, key: str = "encoder.statistics") -> Statistics | None:
    """Mean and std of each of `channels` latent channels at `uri`, tensors of C values each; None without
    one. Raises `InputError` for a file of something else."""
    if uri is None:
        return None
    from models.weights import WeightsError, read_file

    with fetching.fetched(fetching.locate(uri), key) as path:
        try:
            tensors = read_file(path, uri)
        except WeightsError as error:
            raise InputError(f"{key}: {error}") from error
    values = {name: tensors[name].flatten().tolist() for name in ("mean", "std") if name in tensors}
    if sorted(values) != ["mean", "std"] or {len(one) for one in values.values()} != {channels}:
        raise InputError(
            f"{key}: {uri} holds {', '.join(f'{k} {tuple(v.shape)}' for k, v in sorted(tensors.items()))};"
            f" expected mean and std of {channels} channels"
        )
    if not all(value > 0 for value in values["std"]):
        raise InputError(f"{key}: {uri} has a std that is not above 0; expected deviations")
    return Statistics(**values)


def _folder(uri: str) -> str:
    """Where the autoencoder's files lie: the folder, the `vae` of a pipeline folder, or this machine's copy
    of a Hugging Face one."""
    if uri.startswith(fetching.HUB):
        with fetching.fetched(uri, "encoder.weights") as path:
            uri = str(path)
    inner = storage.join(uri, "vae")
    return inner if storage.exists(storage.join(inner, "config.json")) else uri


class Encoder:
    """The loaded autoencoder of one worker: on its GPU when it was given one."""

    def __init__(self, plan: Plan) -> None:
        import torch

        from models import latents

        assert plan.weights is not None
        self.plan = plan
        use_tf32(False)  # the lake's latents are those of float32
        where = _folder(plan.weights)
        with tempfile.TemporaryDirectory() as folder:
            for name in (latents.CONFIG_FILE, latents.WEIGHTS_FILE):
                storage.download(storage.join(where, name), Path(folder) / name)
            self.model = latents.load_autoencoder(folder, "cuda" if torch.cuda.is_available() else "cpu")

    def columns(self, images: Any) -> dict[str, pa.Array]:
        """Pixels uint8 (N, H, W, 3) -> the latent columns of their rows."""
        from models.latents import encode_pixels

        mean, std = encode_pixels(self.model, images, self.plan.batch)
        return {
            "latent_mean": parquet_shards.tensor_array(mean, "latent"),
            "latent_std": parquet_shards.tensor_array(std, "latent"),
        }
