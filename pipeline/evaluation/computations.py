"""The work that measures are made of: drawing and judging, losses, relearning. Each part shares out over any
number of shards."""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from pipeline.data.batch import Batch
from pipeline.data.parquet_shards import FLIP_MARK
from pipeline.evaluation.context import AFTER, BEFORE, GOLD, Bench, Scope, pick
from pipeline.evaluation.metrics.frechet import Moments
from pipeline.evaluation.metrics.kid import block_mmd, kid_sums
from pipeline.evaluation.metrics.membership import sample_losses
from pipeline.evaluation.metrics.paired_drift import drift_sums
from pipeline.evaluation.metrics.relearning import relearning
from pipeline.evaluation.metrics.timestep_loss import timestep_losses
from pipeline.evaluation.partials import Ranks, Sums, blocks, placed, tally
from pipeline.evaluation.sampling import Block, Plan, draw_blocks, plan
from pipeline.seeding import generator, seed_of

JUDGE = "judge"  # the feature space that is always there: the judge's last hidden layer
TOP = 5  # calls of the judge that are kept of every image
# whose images of the same seeds are held against each other
DRIFTS = ((AFTER, BEFORE), (AFTER, GOLD), (BEFORE, GOLD))


def forgotten_plan(scope: Scope) -> str:
    """The name of the plan of forgotten labels at the main CFG scale."""
    return f"forgotten@{scope.settings.cfg_scale:g}"


def plans(scope: Scope) -> dict[str, Plan]:
    """What is drawn: `retained`, `null`, and `forgotten@<scale>` at each CFG scale, in a random order that
    mixes the labels.

    (Not in turns: within a block every pair must be as likely to share its label as not to, or kernel
    distances come out too low.)
    """
    s = scope.settings

    def made(counts: dict[int, int], cfg_scale: float) -> Plan:
        what = plan(
            counts,
            seed=scope.seed,
            purpose="measured",
            cfg_scale=cfg_scale,
            steps=s.sampler_steps,
            batch=s.block,
        )
        positions = torch.randperm(len(what.labels), generator=generator(scope.seed, "order")).tolist()
        return Plan(
            labels=tuple(what.labels[i] for i in positions),
            seeds=tuple(what.seeds[i] for i in positions),
            cfg_scale=cfg_scale,
            steps=s.sampler_steps,
            batch=s.block,
        )

    found = {"retained": made(dict.fromkeys(scope.retained, s.retain_samples), s.cfg_scale)}
    if scope.forgotten:
        each = -(-s.samples // len(scope.forgotten))
        for scale in dict.fromkeys([s.cfg_scale, *s.cfg_scales]):
            found[f"forgotten@{scale:g}"] = made(dict.fromkeys(scope.forgotten, each), scale)
    if scope.conditional:
        found["null"] = made({scope.null_label: s.null_samples}, 1.0)
    return found


def drawing(bench: Bench, ranks: Ranks) -> Sums:
    """Images of every plan by every side: <side>/<plan>/ranked (N, 5) calls; of the retained labels, in every
    feature space, moments, kernel distances to real rows, the first features, and, of two sides, their paired
    drift: <space>/<side>/… and <space>/drift/<a>/<b>/….
    `<space>/real/…`: moments and features of the real rows. Of the forgotten labels the judge's first
    features at the main CFG scale, judge/<side>/forgotten, and those of real rows of each one's exchange
    classes, judge/exchange/<class>."""
    sums: Sums = {}
    real, kept = reference_rows(bench), bench.scope.settings.manifold_samples
    features_of = _feature_reader(bench, real)
    for positions in blocks(len(real), bench.scope.settings.block, ranks.rank, ranks.world):
        for space, features in features_of(tuple(positions)).items():
            _moments(sums, f"{space}/real", features)
            tally(sums, f"{space}/real/features", _first(features, positions, min(kept, len(real))))
    for c, rows in exchange_rows(bench).items():
        read = _feature_reader(bench, rows)
        for positions in blocks(len(rows), bench.scope.settings.block, ranks.rank, ranks.world):
            tally(
                sums,
                f"{JUDGE}/exchange/{c}",
                placed(len(rows), positions, read(tuple(positions))[JUDGE].double()),
            )
    for name, what in plans(bench.scope).items():
        compared, forgotten = name == "retained", name == forgotten_plan(bench.scope)
        spaces = bench.spaces if compared else {}
        sides = [
            draw_blocks(model, bench.judge, what, ranks, top=TOP, to_pixels=bench.to_pixels, spaces=spaces)
            for model in bench.sides.values()
        ]
        for parts in zip(*sides):
            for side, part in zip(bench.sides, parts):
                tally(sums, f"{side}/{name}/ranked", placed(len(what.labels), part.positions, part.ranked))
                if forgotten:
                    tally(
                        sums,
                        f"{JUDGE}/{side}/forgotten",
                        _first(part.features, part.positions, min(kept, len(what.labels))),
                    )
                for space, features in _spaces(part).items() if compared else ():
                    _moments(sums, f"{space}/{side}", features)
                    tally(
                        sums,
                        f"{space}/{side}/features",
                        _first(features, part.positions, min(kept, len(what.labels))),
                    )
                    _kernel_distance(
                        sums, space, side, features, part.positions, len(real), features_of, what.batch
                    )
            by_side = dict(zip(bench.sides, parts))
            for one, other in DRIFTS if compared else ():
                if one in by_side and other in by_side:
                    first, second = _spaces(by_side[one]), _spaces(by_side[other])
                    for space in first:
                        for key, value in drift_sums(
                            by_side[one].labels, first[space], second[space]
                        ).items():
                            tally(sums, f"{space}/drift/{one}/{other}/{key}", value)
    return sums


def losing(bench: Bench, ranks: Ranks) -> Sums:
    """Losses by timestep of forgotten and retained rows, trained on and held out:
    <side>/<group>/bin/<index>."""
    sums: Sums = {}
    s, scope = bench.scope.settings, bench.scope
    for name, rows in groups(bench).items():
        for side, model in bench.sides.items():
            model.net.eval()
            found = timestep_losses(
                model,
                rows,
                timesteps=scope.timesteps,
                bins=s.timestep_bins,
                seed=scope.seed,
                block=s.block,
                rank=ranks.rank,
                world=ranks.world,
            )
            sums |= {f"{side}/{name}/{key}": value for key, value in found.items()}
    return sums


def attacking(bench: Bench, ranks: Ranks) -> Sums:
    """Losses of the forgotten rows and of never-seen rows of their classes: <side>/members (N,),
    <side>/heldout (M,)."""
    s, seed = bench.scope.settings, bench.scope.seed
    members = pick(forgotten_rows(bench, "train"), s.membership_rows, seed, "membership")
    heldout = pick(forgotten_rows(bench, "heldout"), s.membership_rows, seed, "membership")
    sums: Sums = {}
    for side, model in bench.sides.items():
        model.net.eval()
        for name, rows in (("members", members), ("heldout", heldout)):
            found = sample_losses(
                model,
                rows,
                draws=s.membership_draws,
                seed=seed_of(seed, "measured"),
                batch=s.block,
                collectives=ranks,
            )
            sums[f"{side}/{name}"] = torch.tensor(found, dtype=torch.float64)
    return sums


Work = Callable[[Bench, Ranks], Sums]
WORKS: dict[str, Work] = {
    "drawing": drawing,
    "losing": losing,
    "attacking": attacking,
    "relearning": relearning,
}


def forgotten_rows(bench: Bench, split: Literal["train", "heldout"]) -> Batch:
    """Rows of the forgotten classes, or the named samples and never-seen rows of their classes."""
    scope = bench.scope
    if not scope.sample_ids:
        return bench.rows(list(scope.forgotten), split)
    rows = bench.rows(list(scope.sample_classes), split)
    if split == "heldout":
        return rows
    named = set(scope.sample_ids)
    return rows.take(
        [index for index, name in enumerate(rows.sample_id) if name.removesuffix(FLIP_MARK) in named]
    )


def groups(bench: Bench) -> dict[str, Batch]:
    """At most `loss_rows` rows of each kind, by name; kinds that the lake has no rows of are left out."""
    s, scope = bench.scope.settings, bench.scope
    splits: tuple[Literal["train", "heldout"], ...] = ("train", "heldout")
    found = {}
    for split in splits:
        for name, rows in (
            ("forget", forgotten_rows(bench, split)),
            ("retain", bench.rows(list(scope.retained), split)),
        ):
            if len(rows):
                found[f"{name}_{split}"] = pick(rows, s.loss_rows, scope.seed, f"losses of {name} {split}")
    return found


def reference_rows(bench: Bench) -> Batch:
    """Real retained rows in a random order that mixes the classes."""
    rows = bench.rows(list(bench.scope.retained), "train")
    order = torch.randperm(len(rows), generator=generator(bench.scope.seed, "reference"))
    return rows.take(order[: bench.scope.settings.reference_rows].tolist())


def exchange_rows(bench: Bench) -> dict[int, Batch]:
    """Real rows of the exchange classes of each forgotten class, at most `manifold_samples`."""
    scope = bench.scope
    asked = {
        c: list(scope.exchange[c]) for c in scope.forgotten if scope.conditional and scope.exchange.get(c)
    }
    most = scope.settings.manifold_samples
    return {
        c: pick(bench.rows(targets, "train"), most, scope.seed, f"exchange of {c}")
        for c, targets in asked.items()
    }


def _spaces(block: Block) -> dict[str, Tensor]:
    return {JUDGE: block.features, **block.further}


def _feature_reader(bench: Bench, real: Batch) -> Callable[[tuple[int, ...]], dict[str, Tensor]]:
    @lru_cache(maxsize=1)  # both sides ask for the same rows in turn
    @torch.no_grad()
    def features(positions: tuple[int, ...]) -> dict[str, Tensor]:
        x = bench.to_pixels(real.take(positions).mean.to(bench.device))
        return {name: space.features(x).cpu() for name, space in {JUDGE: bench.judge, **bench.spaces}.items()}

    return features


def _kernel_distance(
    sums: Sums,
    space: str,
    side: str,
    features: Tensor,
    positions: list[int],
    real: int,
    features_of: Callable[[tuple[int, ...]], dict[str, Tensor]],
    block: int,
) -> None:
    """The unbiased MMD of a block against one of as many real rows, going round them in order; a short last
    block is left out."""
    if len(features) < max(2, block // 2) or len(features) > real:
        return
    other = features_of(tuple(position % real for position in positions))[space]
    tally(sums, f"{space}/{side}/kid", kid_sums(block_mmd(features, other).reshape(1)))


def _moments(sums: Sums, name: str, features: Tensor) -> None:
    part = Moments.of(features)
    tally(sums, f"{name}/n", torch.tensor(part.n))
    tally(sums, f"{name}/total", part.total)
    tally(sums, f"{name}/outer", part.outer)


def _first(features: Tensor, positions: list[int], n: int) -> Tensor:
    """Those of `features` whose position is below `n`, in their places, float64 (n, F)."""
    inside = [index for index, position in enumerate(positions) if position < n]
    return placed(n, [positions[index] for index in inside], features[inside].double())
