"""The data plane's figures: images into a lake beside a plain PIL loop, rows out of a partition beside
pyarrow.dataset, seconds to the first batch, how long steps wait, and memory as the lake grows tenfold.

Rates that Ray reaches are of wall time on all cores. `prepare_over_pil_cpu` compares CPU seconds of one
process, which a busy machine hardly changes; `pil_images_per_second_per_core` is what plain loops reach with
one on every core.
"""

import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline import storage
from pipeline.benchmarks.measure import paired_cpu_seconds, ratio
from pipeline.config import BenchmarkConfig, PrepareConfig, UnlearnConfig, parse
from pipeline.data import ingest, ingest_ray, parquet_shards
from pipeline.data.lake import MANIFEST, SCHEMA_VERSION, Class, Encoding, Lake, Manifest
from pipeline.data.partition import Partition
from pipeline.data.partition_ray import build_partition

if TYPE_CHECKING:
    from pipeline.data.batch import Batch

LATENT = (4, 32, 32)
CLASS_ROWS = 1000
DISTINCT = 200  # photographs sampled; more are copies of these
BOUNDS = {
    "prepare_over_pil": 0.8,
    "stream_over_pyarrow": 0.5,
    "seconds_to_first_batch": 3.0,
    "waiting_share/digits": 0.01,
    "waiting_share/latents": 0.01,
}


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """The figures as one JSON value, what they are held against beside them. Everything it writes is
    temporary."""
    from pipeline.benchmarks import data_ray
    from pipeline.runtime import cluster_ray

    settings = config.data
    cores = os.cpu_count() or 1
    cluster_ray.connect(cores)
    with tempfile.TemporaryDirectory() as root:
        raw = (
            storage.absolute(settings.images_uri)
            if settings.images_uri
            else photographs(f"{root}/raw", settings.images, config.seed)
        )
        report = preparing(raw, root, cores, settings.repeats)
        small = latent_partition(f"{root}/small", max(2 * CLASS_ROWS, settings.rows // 10), settings.batch)
        large = latent_partition(f"{root}/large", settings.rows, settings.batch)
        report |= streaming(large, settings.workers, settings.repeats)
        report |= growth(small, large, settings.workers, raw, root)
        digits = digits_partition(f"{root}/digits")
        for name, partition in (("digits", digits), ("latents", large)):
            ranks = data_ray.consume(partition, settings.workers, steps=settings.steps)
            report[f"waiting_share/{name}"] = round(
                max(rank["waiting"] / rank["seconds"] for rank in ranks), 4
            )
            report[f"step_seconds/{name}"] = round(statistics.median(rank["step"] for rank in ranks), 4)
    return {"benchmark": "data", "cores": cores, **report, "bounds": BOUNDS, "setting": settings.model_dump()}


def preparing(raw: str, root: str, cores: int, repeats: int) -> dict[str, float]:
    """Images of the folder `raw` into a lake at 256 pixels, and through the same transform in a plain loop:
    one of them, and one a core."""
    from pipeline.benchmarks import data_ray

    _, items = ingest_ray.listed(prepare_config(raw, root))
    files, few, tenth = [storage.join(raw, item.ref) for item in items], items[::10], f"{root}/tenth"
    for item in few:
        storage.write_bytes(storage.join(tenth, item.ref), storage.read_bytes(storage.join(raw, item.ref)))

    here = {
        "pil": lambda: pil_loop([storage.join(tenth, item.ref) for item in few]),
        "prepare": lambda: prepare_here(tenth, f"{root}/prepared"),
    }
    seconds = paired_cpu_seconds(here, repeats=repeats)
    variants: dict[str, Callable[[], object]] = {
        "pil": lambda: pil_loop(files),
        "ray": lambda: ingest_ray.prepare(prepare_config(raw, f"{root}/prepared")),
        "pil_each": lambda: data_ray.pil_loops(files, cores),
    }
    walls: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats + 1):
        for name, this in variants.items():
            started = time.perf_counter()
            this()
            walls[name].append(time.perf_counter() - started)
            storage.remove(f"{root}/prepared")
    pil, ray, each = (len(files) / statistics.median(walls[name][1:]) for name in variants)
    return {
        "images": len(files),
        "pil_images_per_second": round(pil, 2),
        "pil_images_per_second_per_core": round(each / cores, 2),
        "prepare_images_per_second_per_core": round(ray / cores, 2),
        "prepare_over_pil": round(ray / cores / pil, 4),
        "prepare_over_pil_cpu": round(ratio(seconds, "pil", "prepare"), 4),
    }


def pil_loop(files: Sequence[str]) -> None:
    """What preparing is held against: read, decode, halve by box, bicubic, crop, to an array."""
    for file in files:
        with Image.open(file) as image:
            np.asarray(published_crop(image.convert("RGB"), 256))


def published_crop(image: Image.Image, size: int) -> Image.Image:
    """As a plain loop has it: facebookresearch/DiT train.py, center_crop_arr."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize(
        (round(image.size[0] * scale), round(image.size[1] * scale)), resample=Image.Resampling.BICUBIC
    )
    left, top = (image.size[0] - size) // 2, (image.size[1] - size) // 2
    return image.crop((left, top, left + size, top + size))


def streaming(partition: Partition, workers: int, repeats: int) -> dict[str, float]:
    """Every row of the retain side into the workers, read by themselves and by Ray Data, and the same files
    through one process of pyarrow.dataset. From when the stream is asked for to its last row."""
    from pyarrow import dataset

    from pipeline.benchmarks import data_ray

    files = [storage.join(partition.uri, file.path) for file in partition.manifest.retain]
    rows = sum(file.rows for file in partition.manifest.retain)
    rates: dict[str, list[float]] = {"plain": [], "ray": [], "pyarrow": []}
    first = []
    for _ in range(repeats):
        for reader in ("plain", "ray"):
            ranks = data_ray.consume(partition, workers, reader=reader)
            parquet_shards.require_rows(partition.uri, sum(int(rank["rows"]) for rank in ranks), rows)
            rates[reader].append(rows / max(rank["first"] + rank["seconds"] for rank in ranks))
            first.append(max(rank["first"] for rank in ranks))
        started = time.perf_counter()
        parquet_shards.require_rows(
            partition.uri, sum(batch.num_rows for batch in dataset.dataset(files).to_batches()), rows
        )
        rates["pyarrow"].append(rows / (time.perf_counter() - started))
    over = {
        reader: statistics.median(a / b for a, b in zip(rates[reader], rates["pyarrow"], strict=True))
        for reader in ("plain", "ray")
    }
    return {
        "rows": rows,
        "stream_rows_per_second": round(statistics.median(rates["plain"])),
        "ray_stream_rows_per_second": round(statistics.median(rates["ray"])),
        "pyarrow_rows_per_second": round(statistics.median(rates["pyarrow"])),
        "stream_over_pyarrow": round(over["plain"], 4),
        "ray_stream_over_pyarrow": round(over["ray"], 4),
        # of processes that had read nothing yet
        "seconds_to_first_batch": round(first[0], 3),
        "ray_seconds_to_first_batch": round(first[1], 3),
    }


def growth(small: Partition, large: Partition, workers: int, raw: str, root: str) -> dict[str, float]:
    """Peak memory in MB of a worker that streams (its private memory), and of a process that prepares, at a
    tenth of the rows and at all.

    A reader's buffers fill with its first few hundred batches; `stream_peak_mb/half` is of the first half of
    all rows.
    """
    from pipeline.benchmarks import data_ray

    ranks = [data_ray.consume(part, workers) for part in (small, large)]
    tenth, whole = (max(rank["peak_mb"] for rank in world) for world in ranks)
    half = max(rank["early_peak_mb"] for rank in ranks[1])
    prepared = [data_ray.preparing_peak_mb(uri, f"{root}/peak") for uri in (f"{root}/tenth", raw)]
    peaks = {"stream_peak_mb/tenth": tenth, "stream_peak_mb/half": half, "stream_peak_mb": whole}
    peaks |= {"prepare_peak_mb/tenth": prepared[0], "prepare_peak_mb": prepared[1]}
    growth = {"stream_peak_growth": whole / half, "prepare_peak_growth": prepared[1] / prepared[0]}
    return {name: round(value, 1) for name, value in peaks.items()} | {
        name: round(value, 3) for name, value in growth.items()
    }


def prepare_here(raw: str, root: str) -> None:
    """The lake of the folder `raw`, made in this process and removed again."""
    ingest_ray.prepare(prepare_config(raw, root), run=lambda tasks: map(ingest.make_shard, tasks))
    storage.remove(root)


def prepare_config(raw: str, root: str) -> PrepareConfig:
    source = {"kind": "imagefolder", "uri": raw, "held_out": 0.0}
    return parse(
        PrepareConfig,
        {"storage": root, "lake": "benchmark", "source": source, "prepare": {"size": 256, "shard_rows": 64}},
    )


def photographs(root: str, count: int, seed: int) -> str:
    """`count` JPEGs of 500x375 pixels in two class folders, `DISTINCT` different ones: smooth colour fields
    with grain, about as large as photographs are."""
    random = np.random.default_rng(seed)
    jpegs = []
    for number in range(count):
        if number < DISTINCT:
            field = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8)).resize(
                (500, 375), Image.Resampling.BICUBIC
            )
            grain = np.asarray(field).astype(np.int16) + random.integers(-12, 13, (375, 500, 1), np.int16)
            data = io.BytesIO()
            Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
            jpegs.append(data.getvalue())
        storage.write_bytes(f"{root}/class{number % 2}/{number:06d}.jpg", jpegs[number % DISTINCT])
    return root


def latent_partition(root: str, rows: int, batch: int) -> Partition:
    """A lake of `rows` random latents in classes of a thousand, and a request's partition that streams the
    retained ones once."""
    random = np.random.default_rng(0)
    values = parquet_shards.tensor_array(
        random.normal(0, 1, (CLASS_ROWS, *LATENT)).astype(np.float16), "latent"
    )
    labels = range(max(2, rows // CLASS_ROWS))
    files = []
    for label in labels:
        ids = [f"{label:05d}-{i:05d}" for i in range(CLASS_ROWS)]
        table = pa.table(
            {
                "sample_id": ids,
                "label": pa.array([label] * CLASS_ROWS, pa.int32()),
                "latent_mean": values,
                "latent_std": values,
            }
        )
        path = f"data/label={label:05d}/part-00000.parquet"
        files.append(
            parquet_shards.write(f"{root}/lake", path, [table], "latent", LATENT, label=label, split="train")
        )
    manifest = Manifest(
        name="benchmark",
        schema_version=SCHEMA_VERSION,
        kind="latent",
        shape=list(LATENT),
        classes=[
            Class(label=label, name=str(label), train_rows=CLASS_ROWS, heldout_rows=0) for label in labels
        ],
        shards=files,
        source={},
        preprocessing={},
        encoder=Encoding(kind="autoencoder_kl", digest="0" * 64, scale=0.18215),
    )
    storage.write_json(f"{root}/lake/{MANIFEST}", manifest.model_dump(mode="json"))
    steps = (len(labels) - 1) * CLASS_ROWS // batch
    return _partition(root, Lake(uri=f"{root}/lake", manifest=manifest), batch, steps)


def digits_partition(root: str) -> Partition:
    """The quickstart's own: 60 steps of 64 digits."""
    config = parse(PrepareConfig, {"storage": root, "prepare": {"size": 8, "channels": 1}})
    lake = ingest_ray.prepare(config, run=lambda tasks: map(ingest.make_shard, tasks)).lake
    return _partition(root, lake, 64, 60)


def _partition(root: str, lake: Lake, batch: int, steps: int) -> Partition:
    values: dict[str, Any] = {"storage": root, "request": {"classes": [1], "exchange": {1: 0}}}
    return build_partition(
        parse(UnlearnConfig, {**values, "optim": {"batch_size": batch, "max_steps": steps}}), lake
    )


def step_of(partition: Partition) -> Callable[["Batch"], None]:
    """One plain fine-tuning step, the shortest there is, on a batch of the partition: DiT-tiny, or the step
    benchmark's model.

    The latter takes four rows of each batch, so that steps are short for what has to be streamed.
    """
    import torch

    from models.diffusion import Noise
    from models.generative import DiTModel, dit_description
    from pipeline.benchmarks.step import model_of
    from pipeline.seeding import generator

    if partition.manifest.kind == "latent":
        model = model_of(384, 6, 256, 0)
    else:
        model = DiTModel(dit_description("DiT-tiny", shape=(1, 8, 8), num_classes=10, class_names=[]))
    params = list(model.net.parameters())
    optimiser = torch.optim.AdamW(params, lr=1e-4)
    draws = generator(0, "benchmark")

    def step(batch: "Batch") -> None:
        if partition.manifest.kind == "latent":
            batch = batch.take(slice(0, 4))
        noise = Noise(
            t=torch.randint(1000, (len(batch),), generator=draws),
            eps=torch.randn(batch.mean.shape, generator=draws),
        )
        optimiser.zero_grad()
        model.losses(model.net, batch.mean, batch.y % model.num_classes, noise).mean().backward()
        optimiser.step()

    return step
