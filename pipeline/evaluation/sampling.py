"""Images sampled and judged, sharded over ranks: image k depends on its label and seed alone.

N images of a plan, n of a block, F features of a space.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from models.features.table import FeatureSpace
from models.generative import GenerativeModel
from models.judge import Judge
from pipeline.config.sampling import Sampler
from pipeline.evaluation.context import (
    EARLIER,
    RETAINED,
    UNLABELLED,
    EvalContext,
    EvalSpec,
    forgotten_at,
)
from pipeline.evaluation.partials import Partials, Ranks, Shard, add_into, blocks, scatter
from pipeline.evaluation.rows import real_features
from pipeline.evaluation.samplers import options
from pipeline.seeding import generator, seed_of

LANES = 8  # ranks that can share one plan; a block of images never depends on how many do
PIXELS = "pixels"  # beside the feature spaces: the image itself, flattened


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to sample: one (label, seed) an image, guidance, sampler steps; `sampler`: in place of the
    model's own. `groups`: positions by what the images are asked about."""

    labels: tuple[int, ...]
    seeds: tuple[int, ...]
    cfg_scale: float
    steps: int
    batch: int
    sampler: Sampler | None = None
    groups: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def cut(self, least: int) -> "Plan":
        """The same in at least `least` blocks."""
        return replace(self, batch=min(self.batch, max(1, -(-len(self.labels) // least))))


def plan(
    counts: Mapping[int, int | range],
    *,
    seed: int,
    purpose: str,
    cfg_scale: float,
    steps: int,
    batch: int,
    sampler: Sampler | None = None,
) -> Plan:
    """`counts[label]` images of each label, or those of a range of indices, on noise keyed by (seed,
    purpose, label, index)."""
    pairs = [
        (label, seed_of(seed, purpose, label, k))
        for label, n in sorted(counts.items())
        for k in (n if isinstance(n, range) else range(n))
    ]
    return Plan(
        labels=tuple(label for label, _ in pairs),
        seeds=tuple(one for _, one in pairs),
        cfg_scale=cfg_scale,
        steps=steps,
        batch=batch,
        sampler=sampler,
    )


@lru_cache(maxsize=4)
def plans(spec: EvalSpec) -> tuple[Plan, ...]:
    """What an evaluation samples: groups `retained`, `null`, `earlier`, and `forgotten@<scale>` at each CFG
    scale.

    Plans of a group of their own mix their labels at random. (Not in turns: within a block every pair must
    be as likely to share its label as not to, or kernel distances come out too low.)
    """
    s = spec.settings
    of_retained = dict.fromkeys(spec.retained, s.retain_samples)
    # the classes forgotten now share `samples`, and so do those forgotten earlier
    of_forgotten, of_earlier = (
        dict.fromkeys(classes, range(-(-spec.skipped // n), -(-s.samples // n)))
        for classes in (spec.forgotten, spec.earlier)
        for n in [max(1, len(classes))]
    )

    def sampled(counts: Mapping[int, int | range], cfg_scale: float) -> Plan:
        return plan(
            counts,
            seed=spec.seed,
            purpose=spec.purpose,
            cfg_scale=cfg_scale,
            steps=s.sampler_steps,
            batch=s.block,
            sampler=s.sampler,
        )

    def mixed(name: str, counts: Mapping[int, int | range], cfg_scale: float) -> Plan:
        ordered = sampled(counts, cfg_scale)
        order = torch.randperm(len(ordered.labels), generator=generator(spec.seed, "order")).tolist()
        return replace(
            ordered,
            labels=tuple(ordered.labels[i] for i in order),
            seeds=tuple(ordered.seeds[i] for i in order),
            groups={name: range(len(order))},
        )

    unlabelled = [mixed(UNLABELLED, {spec.null_label: s.null_samples}, 1.0)] if spec.conditional else []
    if spec.joint:
        labelled = of_retained | of_forgotten | of_earlier
        joint = sampled(labelled if spec.conditional else {0: s.samples}, s.cfg_scale).cut(spec.cuts)
        every = range(len(joint.labels))
        by_group = {RETAINED: spec.retained, spec.forgotten_group: spec.forgotten, EARLIER: spec.earlier}
        groups = {  # of a model without labels each image answers all questions
            name: [i for i in every if not spec.conditional or joint.labels[i] in labels]
            for name, labels in ((name, frozenset(own)) for name, own in by_group.items())
            if labels
        }
        return (replace(joint, groups=groups), *(one.cut(spec.cuts) for one in unlabelled if s.null_samples))
    scales = list(dict.fromkeys([s.cfg_scale, *s.cfg_scales])) if spec.forgotten else []
    return (
        mixed(RETAINED, of_retained, s.cfg_scale),
        *(mixed(forgotten_at(scale), of_forgotten, scale) for scale in scales),
        *([mixed(EARLIER, of_earlier, s.cfg_scale)] if spec.earlier else []),
        *unlabelled,
    )


def group_sizes(spec: EvalSpec) -> dict[str, int]:
    """Images of each group."""
    return {name: len(positions) for one in plans(spec) for name, positions in one.groups.items()}


class Images:
    """Images that were sampled together: their `positions`, the `labels` they are conditioned on (n,), and
    the judge's predictions `ranked`, best first (n, k); on the CPU. Features are computed when they are
    asked for, once."""

    def __init__(
        self, positions: Sequence[int], labels: Tensor, ranked: Tensor, features: Callable[[str], Tensor]
    ):
        self.positions, self.labels, self.ranked = positions, labels, ranked
        self.features = features  # space -> (n, F), on the CPU

    def at(self, index: list[int], positions: Sequence[int]) -> "Images":
        """Those at `index`, under other positions."""
        return Images(
            positions, self.labels[index], self.ranked[index], lambda space: self.features(space)[index]
        )


@torch.no_grad()
def sample_blocks(
    model: GenerativeModel,
    judge: Judge,
    plan: Plan,
    ranks: Ranks,
    *,
    top: int = 1,
    to_pixels: Callable[[Tensor], Tensor] = lambda x: x,
    spaces: Mapping[str, FeatureSpace] | None = None,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    portion: tuple[int, int] = (0, 1),
) -> Iterator[Images]:
    """Sample this rank's blocks of the plan, `plan.batch` images each, and ask the judge. The same images
    whatever the number of ranks. `autocast` surrounds the sampler alone. `portion` (i, n): the i-th of n
    parts of the blocks."""
    number, count = portion
    in_all = -(-len(plan.labels) // plan.batch)
    for positions in blocks(len(plan.labels), plan.batch, ranks.rank, ranks.world_size):
        if positions[0] // plan.batch * count // in_all != number:
            continue
        labels = torch.tensor([plan.labels[i] for i in positions])
        seeds = [plan.seeds[i] for i in positions]
        with autocast():
            sampled = model.sample(
                labels=labels,
                seeds=seeds,
                cfg_scale=plan.cfg_scale,
                steps=plan.steps,
                **options(model, plan.sampler),
            )
        x = to_pixels(sampled)
        ranked = judge.logits(x).topk(min(top, judge.num_classes), dim=1).indices.cpu()

        @lru_cache
        @torch.no_grad()
        def features(space: str, x: Tensor = x) -> Tensor:
            return (x.flatten(1) if space == PIXELS else (spaces or {})[space].features(x)).cpu()

        yield Images(positions, labels, ranked, features)


@dataclass(frozen=True, kw_only=True)
class Collector:
    """What one metric takes of every block: `add(group, images by side)` gives partials, `zeros` those of no
    image (needed where ranks are reduced together, since a rank may have no block)."""

    add: Callable[[str, Mapping[str, Images]], Partials]
    zeros: Partials = field(default_factory=dict)


Collect = Callable[[EvalContext], Collector]


def sample_images(
    context: EvalContext,
    ranks: Ranks,
    collect: Collection[Collect] = (),
    portion: tuple[int, int] = (0, 1),
) -> Partials:
    """Images of every plan, or the `portion` of each, by every side: <side>/<group>/predictions (N, 1 + k),
    an image's label and the judge's k first predictions; what `collect` takes of them; what real rows come
    to, unless that is known."""
    spec, sizes = context.spec, group_sizes(context.spec)
    width = 1 + min(spec.top, context.judge.num_classes)
    partials = {} if context.real is not None else real_features(context, ranks)
    collectors = [make(context) for make in collect]
    for name, n in sizes.items():
        for side in context.sides:
            partials[f"{side}/{name}/predictions"] = torch.zeros(n, width, dtype=torch.int64)
    for collector in collectors:
        partials |= collector.zeros
    for one in plans(spec):
        streams = [
            sample_blocks(
                model,
                context.judge,
                one,
                ranks,
                top=spec.top,
                to_pixels=context.to_pixels,
                spaces=context.feature_spaces,
                autocast=context.autocast,
                portion=portion,
            )
            for model in context.sides.values()
        ]
        place = {
            name: {position: k for k, position in enumerate(positions)}
            for name, positions in one.groups.items()
        }
        for parts in zip(*streams):
            for name, of_position in place.items():
                index = [i for i, position in enumerate(parts[0].positions) if position in of_position]
                at = [of_position[parts[0].positions[i]] for i in index]
                images = {side: part.at(index, at) for side, part in zip(context.sides, parts)} if at else {}
                for side, own in images.items():
                    rows = torch.cat([own.labels.unsqueeze(1), own.ranked], dim=1)
                    add_into(partials, f"{side}/{name}/predictions", scatter(sizes[name], at, rows))
                for collector in collectors if images else ():
                    for key, value in collector.add(name, images).items():
                        add_into(partials, key, value)
    return partials


def predictions(
    partials: Mapping[str, Tensor], side: str, group: str = RETAINED
) -> tuple[list[int], list[list[int]]]:
    """Labels of a group's images, and what the judge predicts of each, best first."""
    table = partials[f"{side}/{group}/predictions"]
    return table[:, 0].tolist(), table[:, 1:].tolist()


def predicted_classes(
    model: GenerativeModel,
    judge: Judge,
    plan: Plan,
    ranks: Ranks,
    *,
    to_pixels: Callable[[Tensor], Tensor] = lambda x: x,
) -> list[int]:
    """The class that the judge predicts of each image of the plan, in plan order, on every rank."""
    whole = torch.zeros(len(plan.labels), dtype=torch.int64)
    for block in sample_blocks(model, judge, plan.cut(LANES), ranks, to_pixels=to_pixels):
        whole[block.positions] = block.ranked[:, 0]
    return [int(one) for one in ranks.sum(whole.to(next(judge.net.parameters()).device)).tolist()]


@torch.no_grad()
def seeds_predicted(
    model: GenerativeModel, judge: Judge, counts: Mapping[int, int], *, seed: int, among: int = 1024
) -> dict[int, list[int]]:
    """For a model that reads no labels: of `among` seeds the first `counts[label]` whose image is predicted
    to be `label`; fewer if it is rare."""
    candidates = plan({0: among}, seed=seed, purpose="grid", cfg_scale=1.0, steps=1, batch=128)
    seeds_by_label: dict[int, list[int]] = {label: [] for label in counts}
    for block in sample_blocks(model, judge, candidates, Shard()):
        for position, label in zip(block.positions, block.ranked[:, 0].tolist()):
            if label in seeds_by_label and len(seeds_by_label[label]) < counts[label]:
                seeds_by_label[label].append(candidates.seeds[position])
    return {label: seeds for label, seeds in seeds_by_label.items() if seeds}
