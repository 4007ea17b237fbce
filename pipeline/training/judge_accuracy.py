"""A judge from elsewhere brings no record of how good it is: it is tried on the lake's held-out images, where
they are few enough."""

from dataclasses import replace

import torch

from models.judge import Judge
from pipeline.data.lake import Lake
from pipeline.data.parquet_shards import row_bytes
from pipeline.weights.model_folder import Stored

MOST_BYTES = 64 << 20  # of held-out pixels that a check may read: all of MNIST's, a sliver of ImageNet's


def tried(stored: Stored, judge: Judge, lake: Lake) -> Stored:
    """`stored` with `heldout_accuracy` in its manifest, where it lacked one and the lake's held-out images
    are small."""
    from pipeline.training.pretrain import judge_accuracy

    manifest = lake.manifest
    rows = sum(shard.rows for shard in lake.shards(split="heldout"))
    if (
        "heldout_accuracy" in stored.manifest
        or manifest.kind != "image"
        or not 0 < rows * row_bytes("image", manifest.shape) <= MOST_BYTES
    ):
        return stored
    accuracy = judge_accuracy(judge, lake.read(split="heldout"), device=torch.device("cpu"))
    return replace(stored, manifest={**stored.manifest, "heldout_accuracy": accuracy, "heldout_rows": rows})
