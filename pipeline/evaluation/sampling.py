"""Drawing images and asking the judge, sharded over ranks: image k depends on its label and seed alone."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from models.features.table import FeatureSpace
from models.generative import GenerativeModel
from models.judge import Judge
from pipeline.evaluation.metrics.frechet import Moments
from pipeline.evaluation.metrics.manifold import Manifold
from pipeline.evaluation.partials import Ranks, Shard, blocks
from pipeline.seeding import seed_of
from pipeline.unlearning.collectives import Collectives

LANES = 8  # ranks that can share one plan; a block of images never depends on how many do
NO_SPACES: Mapping[str, FeatureSpace] = {}
NO_MANIFOLDS: Mapping[int, Manifold] = {}
Autocast = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to draw: one (label, seed) an image, guidance, sampler steps."""

    labels: tuple[int, ...]
    seeds: tuple[int, ...]
    cfg_scale: float
    steps: int
    batch: int = 128


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """What the judge called each image of a plan: `labels` asked for, `called` (N,), both in plan order on
    every rank.

    `moments` are those of the judge's features per asked label, `further` those of each further space over
    the labels it was asked for.
    `balls` (N,): in how many balls of the manifold of its label an image's features lie; 0 for labels that
    were given none.
    """

    labels: tuple[int, ...]
    called: tuple[int, ...]
    moments: Mapping[int, Moments]
    further: Mapping[str, Moments] = field(default_factory=dict)
    balls: tuple[int, ...] = ()


def plan(
    counts: Mapping[int, int], *, seed: int, purpose: str, cfg_scale: float, steps: int, batch: int
) -> Plan:
    """`counts[label]` images of each label, on noise keyed by (seed, purpose, label, index)."""
    pairs = [
        (label, seed_of(seed, purpose, label, k)) for label, n in sorted(counts.items()) for k in range(n)
    ]
    return Plan(
        labels=tuple(p[0] for p in pairs),
        seeds=tuple(p[1] for p in pairs),
        cfg_scale=cfg_scale,
        steps=steps,
        batch=batch,
    )


@dataclass(frozen=True, kw_only=True)
class Block:
    """Images that were drawn together and judged: `positions` in the plan, `labels` asked for (n,), the
    judge's first calls, best first (n, k), its features (n, F), and those of the `further` spaces; all on the
    CPU."""

    positions: list[int]
    labels: Tensor
    ranked: Tensor
    features: Tensor
    further: Mapping[str, Tensor]


@torch.no_grad()
def draw_blocks(
    model: GenerativeModel,
    judge: Judge,
    what: Plan,
    ranks: Ranks,
    *,
    top: int = 1,
    to_pixels: Callable[[Tensor], Tensor] = lambda x: x,
    spaces: Mapping[str, FeatureSpace] = NO_SPACES,
    autocast: Autocast = nullcontext,
) -> Iterator[Block]:
    """Draw this rank's blocks of the plan, `what.batch` images each, and ask the judge. The same images
    whatever the number of ranks.

    `autocast` surrounds the sampler alone.
    """
    for positions in blocks(len(what.labels), what.batch, ranks.rank, ranks.world):
        labels = torch.tensor([what.labels[i] for i in positions])
        seeds = [what.seeds[i] for i in positions]
        with autocast():
            sampled = model.sample(labels=labels, seeds=seeds, cfg_scale=what.cfg_scale, steps=what.steps)
        x = to_pixels(sampled)
        ranked = judge.logits(x).topk(min(top, judge.num_classes), dim=1).indices
        further = {name: space.features(x).cpu() for name, space in spaces.items()}
        yield Block(
            positions=positions,
            labels=labels,
            ranked=ranked.cpu(),
            features=judge.features(x).cpu(),
            further=further,
        )


def judge_samples(
    model: GenerativeModel,
    judge: Judge,
    what: Plan,
    collectives: Collectives,
    *,
    to_pixels: Callable[[Tensor], Tensor] = lambda x: x,
    spaces: Mapping[str, FeatureSpace] = NO_SPACES,
    compared: Collection[int] = (),
    manifolds: Mapping[int, Manifold] = NO_MANIFOLDS,
    autocast: Autocast = nullcontext,
) -> Verdicts:
    """Draw the plan's images, shared out over ranks, and put the verdicts together on all of them.

    Features in `spaces` are summed over the images of the labels `compared`. `manifolds` are by asked label,
    in the judge's features.
    """
    n = len(what.labels)
    shared = replace(what, batch=min(what.batch, max(1, -(-n // LANES))))
    device = next(judge.net.parameters()).device
    called, balls = torch.zeros(2, n, dtype=torch.int64)
    moments: dict[int, Moments] = {}
    further = {name: Moments.empty(space.feature_size) for name, space in spaces.items()}
    for block in draw_blocks(
        model, judge, shared, collectives, to_pixels=to_pixels, spaces=spaces, autocast=autocast
    ):
        called[block.positions] = block.ranked[:, 0]
        for label in block.labels.unique().tolist():
            own = (block.labels == label).nonzero().flatten()
            if label in manifolds:
                balls[torch.tensor(block.positions)[own]] = manifolds[label].balls_around(block.features[own])
            part = Moments.of(block.features[own])
            moments[label] = moments[label].merge(part) if label in moments else part
        asked = torch.isin(block.labels, torch.tensor(sorted(compared), dtype=torch.int64))
        further = {name: sums.merge(Moments.of(block.further[name][asked])) for name, sums in further.items()}
    empty = Moments.empty(judge.feature_size)
    summed = {
        label: _reduced(moments.get(label, empty), collectives, device) for label in sorted(set(what.labels))
    }
    called, balls = collectives.sum(torch.stack([called, balls]).to(device))
    return Verdicts(
        labels=what.labels,
        called=tuple(called.tolist()),
        balls=tuple(balls.tolist()),
        moments=summed,
        further={name: _reduced(sums, collectives, device) for name, sums in further.items()},
    )


def draw_images(
    model: GenerativeModel,
    labels: Sequence[int],
    *,
    each: int,
    seed: int,
    purpose: str,
    cfg_scale: float,
    steps: int,
) -> Tensor:
    """`each` images of every label, in label order, on the same noise as `plan` gives its first ones: (len *
    each, C, H, W)."""
    what = plan(
        dict.fromkeys(labels, each), seed=seed, purpose=purpose, cfg_scale=cfg_scale, steps=steps, batch=128
    )
    return model.sample(
        labels=torch.tensor(what.labels), seeds=list(what.seeds), cfg_scale=cfg_scale, steps=steps
    )


@torch.no_grad()
def seeds_called(
    model: GenerativeModel, judge: Judge, counts: Mapping[int, int], *, seed: int, among: int = 1024
) -> dict[int, list[int]]:
    """For a model that reads no labels: of `among` seeds the first `counts[label]` whose image is called
    `label`; fewer if it is rare."""
    what = plan({0: among}, seed=seed, purpose="grid", cfg_scale=1.0, steps=1, batch=128)
    found: dict[int, list[int]] = {label: [] for label in counts}
    for block in draw_blocks(model, judge, what, Shard()):
        for position, label in zip(block.positions, block.ranked[:, 0].tolist()):
            if label in found and len(found[label]) < counts[label]:
                found[label].append(what.seeds[position])
    return {label: seeds for label, seeds in found.items() if seeds}


def _reduced(m: Moments, collectives: Collectives, device: torch.device) -> Moments:
    f = m.total.numel()
    buffer = torch.cat([torch.tensor([m.n], dtype=torch.float64), m.total, m.outer.reshape(-1)])
    buffer = collectives.sum(buffer.to(device)).cpu()
    return Moments(n=int(buffer[0].item()), total=buffer[1 : 1 + f], outer=buffer[1 + f :].reshape(f, f))
