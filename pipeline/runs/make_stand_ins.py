"""The stand-ins of a configuration, and the lake of latents that is prepared from them: the real preparation
on tiny weights."""

import math
import os

from pipeline import storage
from pipeline.config import PrepareConfig, UnlearnConfig, parse
from pipeline.data import ingest_ray
from pipeline.runs import stand_ins
from pipeline.runtime import cluster_ray


def stand_in(config: UnlearnConfig) -> UnlearnConfig:
    """`config` with what it leaves open made: weights, decoder, judge, and the lake of the images at
    `stand_in.images` or made ones."""
    given = config.stand_in.images
    storage.require_writable(config.storage)
    cluster_ray.connect(
        max(os.cpu_count() or 1, math.ceil(config.train.most * config.train.cpus_per_worker) + 1)
    )  # as the run itself would
    places = stand_ins.make(storage.join(config.storage, "stand-ins"), config.seed, images=given is None)
    print(
        "stand-ins: tiny untrained weights in the published formats under"
        f" {storage.join(config.storage, 'stand-ins')}",
        flush=True,
    )
    prepared = ingest_ray.prepare(
        parse(
            PrepareConfig,
            {
                "storage": config.storage,
                "lake": config.lake,
                "source": {
                    "kind": "imagefolder",
                    "uri": given or places["images"],
                    "classes": "imagenet",
                    "held_out": 0.0,
                },
                "encoder": {"kind": "autoencoder_kl", "weights": places["encoder"]},
                "prepare": {"size": stand_ins.PIXELS},
            },
        )
    )
    rows = sum(shard.rows for shard in prepared.lake.shards())
    print(
        f"  lake {config.lake}: latents of {rows}"
        f" JPEGs{' (made before)' if prepared.reused else f' in {prepared.seconds:.1f} s'}",
        flush=True,
    )
    return config.model_copy(
        update={
            name: section.model_copy(update={"weights": places[place]})
            for name, section, place in (
                ("model", config.model, "model"),
                ("encoder", config.encoder, "encoder"),
                ("judge", config.judge, "judge"),
            )
            if section.weights is None
        }
    )
