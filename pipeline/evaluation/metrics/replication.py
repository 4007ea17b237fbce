"""Near-copies of the named images among samples of their labels.

The test of Carlini et al. 2023 (arXiv 2301.13188, section 5.1) on pixels: a sample replicates a named image
that is nearer to it than half the mean distance to its 50 nearest other training images. (SISS, arXiv
2503.01034, compares by SSCD, a descriptor of photographs, which small grey images are not.)

N samples, M named images, T other training images of their classes, D pixels; distances are root mean
squares.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.data.batch import Side
from pipeline.data.parquet_shards import FLIP_MARK
from pipeline.evaluation.confidence import share
from pipeline.evaluation.context import EvalContext, EvalSpec
from pipeline.evaluation.partials import Partials, Ranks, blocks, scatter
from pipeline.evaluation.rows import forgotten_rows
from pipeline.evaluation.sampling import PIXELS, plan, sample_blocks

SHARE, NEIGHBOURS = 0.5, 50  # alpha and n of the source


def replication_distances(context: EvalContext, ranks: Ranks) -> Partials:
    """replication/<side> (N, 3) of `samples` images of the named images' labels together: the distances of
    `distances`, and whether the judge predicts the label. Empty where a class has no other training image."""
    spec, s = context.spec, context.spec.settings
    named, others = (_pixels(context, rows) for rows in _named_and_others(context))
    labels = spec.sample_classes if spec.conditional else (0,)
    counts = dict.fromkeys(labels, -(-s.samples // len(labels)) if len(others) else 0)
    samples = plan(
        counts,
        seed=spec.seed,
        purpose=spec.purpose,
        cfg_scale=s.cfg_scale,
        steps=s.sampler_steps,
        batch=s.block,
        sampler=s.sampler,
    ).cut(spec.cuts)
    partials = {}
    for side, model in context.sides.items():
        model.net.eval()
        whole = torch.zeros(len(samples.labels), 3, dtype=torch.float64)
        for images in sample_blocks(
            model,
            context.judge,
            samples,
            ranks,
            to_pixels=context.to_pixels,
            autocast=context.autocast,
        ):
            right = (images.ranked[:, 0] == images.labels).double()
            rows = torch.cat([distances(images.features(PIXELS), named, others), right.unsqueeze(1)], dim=1)
            whole += scatter(len(whole), images.positions, rows)
        partials[f"replication/{side}"] = whole
    return partials


def distances(samples: Tensor, named: Tensor, others: Tensor) -> Tensor:
    """(N, 2) of `samples` (N, D): the distance to the nearest of `named` (M, D), and the mean distance to the
    `NEIGHBOURS` nearest of `others` (T, D), or to all where there are fewer."""

    def apart(rows: Tensor) -> Tensor:  # (N, M or T)
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cdist(samples.double(), rows.double(), compute_mode=exact) / samples.shape[1] ** 0.5

    nearest = apart(others).topk(min(NEIGHBOURS, len(others)), largest=False).values
    return torch.stack([apart(named).amin(1), nearest.mean(1)], dim=1)


def replication(spec: EvalSpec, partials: Mapping[str, Tensor], side: str) -> dict[str, Any] | None:
    """The share of samples that are near-copies; the median distances; `label_accuracy`, how many of them the
    judge predicts as their label. None where there is no other training image to compare with."""
    table = partials[f"replication/{side}"]
    if not len(table):
        return None
    named, others, right = table.unbind(1)
    result: dict[str, Any] = dict(share((named < SHARE * others).tolist()) or {})
    result |= {"distance_named": named.median().item(), "distance_others": others.median().item()}
    return result | ({"label_accuracy": share(right.bool().tolist())} if spec.conditional else {})


def _named_and_others(context: EvalContext) -> tuple[Side, Side]:
    """The named rows, and the other training rows of their classes."""
    rows, named = context.rows(list(context.spec.sample_classes), "train"), forgotten_rows(context, "train")
    names = {name.removesuffix(FLIP_MARK) for name in named.sample_id}
    stay = [i for i, name in enumerate(rows.sample_id) if name.removesuffix(FLIP_MARK) not in names]
    return named, rows.chosen(stay)


def _pixels(context: EvalContext, rows: Side) -> Tensor:
    """(n, D) on the CPU."""
    parts = [
        context.to_pixels(rows.take(index).mean.to(context.device)).flatten(1).cpu()
        for index in blocks(len(rows), context.spec.settings.block, 0, 1)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, 0)
