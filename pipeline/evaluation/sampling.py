"""Drawing images and asking the judge, sharded over ranks: image k depends on its label and seed alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.generative import GenerativeModel
from models.judge import Judge
from pipeline.evaluation.frechet import Moments
from pipeline.seeding import seed_of
from pipeline.unlearning.collectives import Collectives


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
    """What the judge called each image of a plan: `labels` asked for, `called` (N,), both in plan order on every rank.

    `moments` are those of the judge's features per asked label.
    """

    labels: tuple[int, ...]
    called: tuple[int, ...]
    moments: Mapping[int, Moments]


def plan(counts: Mapping[int, int], *, seed: int, purpose: str, cfg_scale: float, steps: int, batch: int) -> Plan:
    """`counts[label]` images of each label, on noise keyed by (seed, purpose, label, index)."""
    pairs = [(label, seed_of(seed, purpose, label, k)) for label, n in sorted(counts.items()) for k in range(n)]
    return Plan(labels=tuple(p[0] for p in pairs), seeds=tuple(p[1] for p in pairs), cfg_scale=cfg_scale, steps=steps, batch=batch)


@torch.no_grad()
def judge_samples(
    model: GenerativeModel,
    judge: Judge,
    what: Plan,
    collectives: Collectives,
    *,
    to_pixels: Callable[[Tensor], Tensor] = lambda x: x,
) -> Verdicts:
    """Draw the plan's images, every world-th on this rank, and put the verdicts together on all ranks."""
    mine = range(collectives.rank, len(what.labels), collectives.world)
    device = next(judge.net.parameters()).device
    called = torch.zeros(len(what.labels), dtype=torch.int64, device=device)
    kinds = sorted(set(what.labels))
    moments: dict[int, Moments] = {}
    for start in range(0, len(mine), what.batch):
        index = list(mine[start : start + what.batch])
        labels = torch.tensor([what.labels[i] for i in index])
        x = to_pixels(model.sample(labels=labels, seeds=[what.seeds[i] for i in index], cfg_scale=what.cfg_scale, steps=what.steps))
        called[index] = judge.logits(x).argmax(1)
        features = judge.features(x)
        for label in labels.unique().tolist():
            part = Moments.of(features[(labels == label).to(device)])
            moments[label] = moments[label].merge(part) if label in moments else part
    empty = Moments.empty(judge.feature_size)
    summed = {label: _reduced(moments.get(label, empty), collectives, device) for label in kinds}
    return Verdicts(labels=what.labels, called=tuple(collectives.sum(called).tolist()), moments=summed)


def draw_images(
    model: GenerativeModel, labels: Sequence[int], *, each: int, seed: int, purpose: str, cfg_scale: float, steps: int
) -> Tensor:
    """`each` images of every label, in label order, on the same noise as `plan` gives its first ones: (len * each, C, H, W)."""
    what = plan(dict.fromkeys(labels, each), seed=seed, purpose=purpose, cfg_scale=cfg_scale, steps=steps, batch=128)
    return model.sample(labels=torch.tensor(what.labels), seeds=list(what.seeds), cfg_scale=cfg_scale, steps=steps)


def _reduced(m: Moments, collectives: Collectives, device: torch.device) -> Moments:
    f = m.total.numel()
    buffer = torch.cat([torch.tensor([m.n], dtype=torch.float64), m.total, m.outer.reshape(-1)])
    buffer = collectives.sum(buffer.to(device)).cpu()
    return Moments(n=int(buffer[0].item()), total=buffer[1 : 1 + f], outer=buffer[1 + f :].reshape(f, f))
