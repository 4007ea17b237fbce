"""Near-copies of named images: the source's ratio test written out, and what the metric says of samples that
are known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from contexts import rows, tiny_context
from tiny import SIDE
from torch import Tensor

from pipeline.evaluation.context import AFTER, EvalContext
from pipeline.evaluation.metrics.replication import NEIGHBOURS, SHARE, distances
from pipeline.evaluation.metrics.table import METRICS, computations_of, results
from pipeline.evaluation.partials import Shard, merge

NAMED = ("train-1-3", "train-1-7")


def named_context(names: tuple[str, ...] = NAMED, **spec: Any) -> EvalContext:
    context = tiny_context(
        base=False,
        forgotten=(),
        exchange={},
        retained=(0, 1, 2, 3),
        sample_ids=names,
        sample_classes=(1,),
        **spec,
    )
    return context


def measured(context: EvalContext, world_size: int = 1) -> dict[str, Any] | None:
    parts = [
        compute(context, Shard(rank, world_size))
        for compute in computations_of(["replication"], context.spec).values()
        for rank in range(world_size)
    ]
    result = results(["replication"], context.spec, merge(parts), [AFTER])[AFTER]["replication"]
    assert result is None or METRICS["replication"].rows(result)
    return result


def sampling(context: EvalContext, images: Tensor) -> EvalContext:
    """`context` whose model gives `images` in turn."""

    def sample(*, labels: Tensor, seeds: list[int], **options: Any) -> Tensor:
        return images[torch.arange(len(labels)) % len(images)]

    context.model.sample = sample  # type: ignore[assignment, method-assign]
    return context


def test_distances_are_root_mean_squares_to_the_nearest() -> None:
    g = torch.Generator().manual_seed(0)
    samples, named, others = (torch.randn(n, 9, generator=g) for n in (5, 3, 60))
    x, a, b = (tensor.double().numpy() for tensor in (samples, named, others))
    apart = [np.sqrt(((x[:, None] - rows[None]) ** 2).mean(2)) for rows in (a, b)]
    wanted = np.stack([apart[0].min(1), np.sort(apart[1], axis=1)[:, :NEIGHBOURS].mean(1)], axis=1)
    assert distances(samples, named, others).numpy() == pytest.approx(wanted)
    few = distances(samples, named, others[:2])[:, 1].numpy()  # all there are
    assert few == pytest.approx(apart[1][:, :2].mean(1))


def test_copies_are_counted_and_others_of_the_class_are_not() -> None:
    own = rows([1], "train")
    images = own.mean[[3, 7, 0, 1]]  # two of the named ones, two others of the class
    result = measured(sampling(named_context(), images))
    assert result is not None
    # blocks of 8 begin with the same images
    assert (result["value"], result["n"]) == (0.5, 20) and result["low"] < 0.5 < result["high"]
    assert result["label_accuracy"]["n"] == 20
    far = measured(sampling(named_context(), torch.full((4, 1, SIDE, SIDE), 5.0)))
    assert far is not None and far["value"] == 0.0
    assert far["distance_named"] > SHARE * far["distance_others"]


def test_shards_add_up_and_nothing_is_said_without_other_images() -> None:
    whole = measured(named_context())
    assert whole is not None and whole == measured(named_context(), 2)
    assert measured(named_context(tuple(rows([1], "train").sample_id))) is None
    assert measured(replace(named_context(), spec=tiny_context().spec)) is None  # a request for a class


def test_a_model_without_labels_is_asked_for_samples_of_none() -> None:
    result = measured(named_context(conditional=False))
    assert result is not None and "label_accuracy" not in result and result["n"] == 20
