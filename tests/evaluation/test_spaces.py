"""Distances in further feature spaces: what they are made of, merged over shards, and only where they were
asked for."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from contexts import tiny_context
from torch import Tensor, nn

from pipeline.evaluation.context import AFTER, BEFORE
from pipeline.evaluation.feature_statistics import Moments, frechet_distance
from pipeline.evaluation.metrics.table import computations_of, evaluate, results
from pipeline.evaluation.partials import Shard, merge
from pipeline.evaluation.rows import reference_rows
from pipeline.evaluation.sampling import plans

DISTANCES = ["fid", "kid", "precision_recall", "paired_drift"]


class Pixels:
    """The image itself, as a feature space."""

    def __init__(self) -> None:
        self.net: nn.Module = nn.Identity()
        self.feature_size = 16

    def features(self, x: Tensor) -> Tensor:
        return x.float().flatten(1)


def test_every_distance_is_taken_in_every_space_and_merges() -> None:
    context = replace(tiny_context(), spaces={"pixels": Pixels()})
    (compute,) = computations_of(DISTANCES, context.spec).values()
    whole, merged = (
        results(
            DISTANCES,
            context.spec,
            merge(compute(context, Shard(rank, world_size)) for rank in range(world_size)),
            list(context.sides),
        )
        for world_size in (1, 3)
    )
    assert same(whole, merged)
    for name in ("fid", "kid", "precision_recall"):
        assert whole[AFTER][name].keys() >= {"judge", "pixels"}
        assert whole[BEFORE][name]["pixels"] != whole[AFTER][name]["pixels"]
    assert whole[AFTER]["paired_drift"].keys() == {"judge", "pixels"}

    (retained,) = [one for one in plans(context.spec) if "retained" in one.groups]
    images = [
        context.model.sample(
            labels=torch.tensor(retained.labels[start : start + 8]),
            seeds=retained.seeds[start : start + 8],
            cfg_scale=2.0,
            steps=2,
        )
        for start in range(0, 21, 8)
    ]
    sampled, real = (
        Moments.of(torch.cat(images).flatten(1)),
        Moments.of(reference_rows(context).mean.float().flatten(1)),
    )
    assert abs(whole[AFTER]["fid"]["pixels"] - frechet_distance(sampled, real)) < 1e-6


def test_without_further_spaces_there_are_the_judges_alone() -> None:
    assert evaluate(["fid"], tiny_context(), Shard())[AFTER]["fid"].keys() == {"judge"}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return abs(a - b) < 1e-6 if isinstance(a, float) else a == b
