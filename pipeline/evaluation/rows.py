"""The real rows that an evaluation looks at: forgotten ones, retained ones, few of each, and their
features."""

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from models.features.table import FeatureSpace
from pipeline.data.batch import Batch, Side
from pipeline.data.parquet_shards import FLIP_MARK
from pipeline.evaluation.context import JUDGE, EvalContext, Split
from pipeline.evaluation.feature_statistics import Moments
from pipeline.evaluation.manifold import Manifold
from pipeline.evaluation.partials import Partials, Ranks, add_into, blocks, scatter
from pipeline.seeding import generator

Reader = Callable[[tuple[int, ...]], dict[str, Tensor]]  # positions -> features (n, F) by space
ENCODED = 256  # rows that pass through a feature network at once


def pick(rows: Side, n: int, seed: int, purpose: str) -> Batch:
    """At most `n` of `rows`, chosen by (seed, purpose) and kept in their order."""
    if len(rows) <= n:
        return rows if isinstance(rows, Batch) else rows.take(range(len(rows)))
    order = torch.randperm(len(rows), generator=generator(seed, purpose))[:n]
    return rows.take(sorted(order.tolist()))


def forgotten_rows(context: EvalContext, split: Split) -> Side:
    """Rows of the forgotten classes; where samples are named, beside classes or alone, those, or never-seen
    rows of their classes."""
    spec = context.spec
    if not spec.sample_classes:
        return context.rows(list(spec.forgotten), split)
    rows = context.rows(list(spec.sample_classes), split)
    if split == "heldout" or not spec.sample_ids:
        return rows
    named = set(spec.sample_ids)
    return rows.chosen(
        [index for index, name in enumerate(rows.sample_id) if name.removesuffix(FLIP_MARK) in named]
    )


class NoImagesError(ValueError):
    """There is nothing for an attacker to learn a class from."""


def few_images(context: EvalContext, n: int) -> Batch:
    """`n` images of each forgotten class, or as many as there are, of those that `attacker_images` names.
    Raises `NoImagesError` for a class without any."""
    spec, split, parts = context.spec, context.spec.settings.attacker_images, []
    for label in spec.forgotten:
        rows = context.rows([label], split)
        if not len(rows):
            raise NoImagesError(
                f"no images of class {label} are left for the attacker: the lake has no {split} rows of it"
                " (measuring.attacker_images)"
            )
        parts.append(pick(rows, n, spec.seed, f"few of {label}"))
    whole = context.rows(list(spec.forgotten), split)
    names = {name for part in parts for name in part.sample_id}
    return whole.take([index for index, name in enumerate(whole.sample_id) if name in names])


def reference_rows(context: EvalContext) -> Batch:
    """Real retained rows in a random order that mixes the classes."""
    rows = context.rows(list(context.spec.retained), "train")
    order = torch.randperm(len(rows), generator=generator(context.spec.seed, "reference"))
    return rows.take(order[: context.spec.settings.reference_rows].tolist())


def feature_reader(context: EvalContext, rows: Batch) -> Reader:
    """Features of `rows`, by position. The latest are kept: several metrics ask for the same ones in turn."""

    @lru_cache(maxsize=1)
    @torch.no_grad()
    def features(positions: tuple[int, ...]) -> dict[str, Tensor]:
        x = context.to_pixels(rows.take(positions).mean.to(context.device))
        return {name: space.features(x).cpu() for name, space in context.feature_spaces.items()}

    return features


def real_features(context: EvalContext, ranks: Ranks) -> Partials:
    """Of the reference rows, in every space: <space>/real/moments/all and, of the first of them,
    <space>/real/features (n, F)."""
    rows, settings = reference_rows(context), context.spec.settings
    features, partials = feature_reader(context, rows), Partials()
    for positions in blocks(len(rows), settings.block, ranks.rank, ranks.world_size):
        for space, values in features(tuple(positions)).items():
            add_into(partials, f"{space}/real/moments/all", Moments.of(values).packed())
            first = scatter(min(settings.manifold_samples, len(rows)), positions, values.double())
            add_into(partials, f"{space}/real/features", first)
    return partials


@torch.no_grad()
def manifolds(
    space: FeatureSpace,
    rows: Mapping[int, Batch],
    k: int,
    to_pixels: Callable[[Tensor], Tensor],
    device: torch.device,
    batch: int = ENCODED,
) -> dict[int, Manifold]:
    """For each forgotten class the balls around the features of its exchange classes' real `rows`, where
    there are more than `k`."""
    return {
        c: Manifold.of(
            torch.cat([space.features(to_pixels(x.to(device))).cpu() for x in own.mean.split(batch)]), k
        )
        for c, own in rows.items()
        if len(own) > k
    }


def exchange_manifolds(context: EvalContext) -> Mapping[int, Manifold]:
    """Those that are known, or those of at most `manifold_samples` rows of the exchange classes of each
    forgotten class, in the judge's features."""
    if context.manifolds is not None:
        return context.manifolds
    spec, settings = context.spec, context.spec.settings
    rows = {
        c: pick(
            context.rows(list(spec.exchange[c]), "train"),
            settings.manifold_samples,
            spec.seed,
            f"exchange of {c}",
        )
        for c in spec.forgotten
        if spec.conditional and spec.exchange.get(c)
    }
    space = context.feature_spaces[JUDGE]
    return manifolds(
        space, rows, settings.manifold_k, context.to_pixels, context.device, batch=settings.block
    )
