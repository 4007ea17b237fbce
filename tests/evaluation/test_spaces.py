"""Distances in further feature spaces: what they are made of, merged over shards, and only where they were
asked for."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from benches import tiny_bench
from tiny import CLASSES, tiny_batch, tiny_judge
from torch import Tensor, nn

from pipeline.evaluation.computations import drawing, plans, reference_rows
from pipeline.evaluation.context import AFTER, BEFORE
from pipeline.evaluation.measure import Subject, feature_moments, measure
from pipeline.evaluation.metrics.frechet import Moments, frechet_distance
from pipeline.evaluation.metrics.table import results
from pipeline.evaluation.partials import Shard, added
from pipeline.unlearning.collectives import Collectives

DISTANCES = ["fid", "kid", "precision_recall", "paired_drift"]


class Pixels:
    """The image itself, as a feature space."""

    def __init__(self) -> None:
        self.net: nn.Module = nn.Identity()
        self.feature_size = 16

    def features(self, x: Tensor) -> Tensor:
        return x.float().flatten(1)


def test_every_distance_is_taken_in_every_space_and_merges() -> None:
    bench = replace(tiny_bench(), spaces={"pixels": Pixels()})
    shards = {
        world: {"drawing": added([drawing(bench, Shard(rank, world)) for rank in range(world)])}
        for world in (1, 3)
    }
    whole, merged = (results(DISTANCES, bench.scope, found, bench.sides) for found in shards.values())
    assert same(whole, merged)
    for name in ("fid", "kid", "precision_recall"):
        assert (
            whole[name][AFTER].keys() >= {"judge", "pixels"}
            and whole[name][BEFORE]["pixels"] != whole[name][AFTER]["pixels"]
        )
    assert whole["paired_drift"].keys() == {"judge", "pixels"}

    what = plans(bench.scope)["retained"]
    images = []
    for start in range(0, len(what.labels), what.batch):
        part = slice(start, start + what.batch)
        images.append(
            bench.model.sample(
                labels=torch.tensor(what.labels[part]),
                seeds=what.seeds[part],
                cfg_scale=what.cfg_scale,
                steps=what.steps,
            )
        )
    drawn, real = (
        Moments.of(torch.cat(images).flatten(1)),
        Moments.of(reference_rows(bench).mean.float().flatten(1)),
    )
    assert abs(whole["fid"][AFTER]["pixels"] - frechet_distance(drawn, real)) < 1e-6


def test_a_bench_without_further_spaces_has_the_judges_alone() -> None:
    bench = tiny_bench()
    found = results(["fid"], bench.scope, {"drawing": drawing(bench, Shard())}, bench.sides)
    assert found["fid"][AFTER].keys() == {"judge", "n", "real_n"}


def test_a_run_takes_them_before_and_after_and_not_at_every_check() -> None:
    judge, pixels, rows = tiny_judge(), Pixels(), tiny_batch([0, 2, 3], each=10).mean.float()
    subject = Subject(
        judge=judge,
        forgotten=(1,),
        exchange={1: (2,)},
        retained=tuple(label for label in range(CLASSES) if label != 1),
        neighbours=(2,),
        reference=feature_moments(judge, [rows]),
        spaces={"pixels": pixels},
        references={"pixels": feature_moments(pixels, [rows], torch.device("cpu"))},
    )
    options: dict[str, Any] = {
        "forget_samples": 20,
        "retain_samples": 4,
        "seed": 0,
        "purpose": "p",
        "cfg_scale": 2.0,
        "steps": 2,
        "batch": 16,
    }
    model = tiny_bench().model
    final = measure(model, subject, Collectives(), further=True, **options)
    check = measure(model, subject, Collectives(), **options)
    assert (
        final.fid.keys() == {"judge", "pixels"}
        and check.fid.keys() == {"judge"}
        and final.fid["judge"] == check.fid["judge"]
    )
    wide = measure(model, subject, Collectives(), further=True, **(options | {"batch": 5}))
    assert abs(wide.fid["pixels"] - final.fid["pixels"]) < 1e-5
    rough = measure(
        model, subject, Collectives(), autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16), **options
    )
    assert rough.fid["judge"] != check.fid["judge"] and abs(rough.fid["judge"] / check.fid["judge"] - 1) < 0.1


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return abs(a - b) < 1e-6 if isinstance(a, float) else a == b
