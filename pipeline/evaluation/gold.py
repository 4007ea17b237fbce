"""The gold reference: a model that never saw the forgotten rows, and how far the unlearned one behaves like it on the other labels."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.generative import GenerativeModel
from pipeline.evaluation.bench import AFTER, BEFORE, Bench, Scope
from pipeline.evaluation.drift import drift_sums, paired_drift
from pipeline.evaluation.frechet import Moments, frechet_distance
from pipeline.evaluation.proportion import proportion
from pipeline.evaluation.retention import retain_shares
from pipeline.evaluation.sampling import draw_blocks
from pipeline.evaluation.sums import Ranks, Sums, below, placed, tally
from pipeline.evaluation.works import plans

GOLD = "gold"
FEATURES = "judge"


def gold_sums(bench: Bench, gold: GenerativeModel, ranks: Ranks) -> Sums:
    """The same seeds under the same labels by all sides: calls, moments of the retained labels, drift of each side against the gold."""
    sums: Sums = {}
    models = {GOLD: gold, **bench.sides}
    scale = f"forgotten@{bench.scope.settings.cfg_scale:g}"
    for name, what in plans(bench.scope).items():
        if name not in ("retained", scale):
            continue
        drawn = [draw_blocks(model, bench.judge, what, ranks, to_pixels=bench.to_pixels) for model in models.values()]
        for parts in zip(*drawn):
            by_side = dict(zip(models, parts))
            for side, part in by_side.items():
                tally(
                    sums,
                    f"{side}/{'retained' if name == 'retained' else 'forgotten'}",
                    placed(len(what.labels), part.positions, part.ranked[:, 0]),
                )
            if name != "retained":
                continue
            for side, part in by_side.items():
                moments = Moments.of(part.features)
                tally(sums, f"{side}/n", torch.tensor(moments.n))
                tally(sums, f"{side}/total", moments.total)
                tally(sums, f"{side}/outer", moments.outer)
                if side != GOLD:
                    for key, value in drift_sums(part.labels, part.features, by_side[GOLD].features).items():
                        tally(sums, f"{side}/drift/{key}", value)
    return sums


def gold_result(scope: Scope, sums: Mapping[str, Tensor]) -> dict[str, Any]:
    """How the gold draws, and how far `after` (and `before`) are from it on the retained labels.

    agreement: share of (label, seed) that the judge calls alike. frechet: between the two models' images. paired_drift: mean distance
    of the same (label, seed). The model before is the yardstick: it saw the rows and is otherwise trained alike.
    """
    labels, asked = plans(scope)["retained"].labels, plans(scope)[f"forgotten@{scope.settings.cfg_scale:g}"].labels
    called = sums[f"{GOLD}/retained"].tolist()
    kept = retain_shares(labels, called, scope.neighbours)
    found: dict[str, Any] = {
        "forget_fraction": _share(sums[f"{GOLD}/forgotten"].tolist(), asked),
        "retain_accuracy": {"mean": kept["mean"], "min": kept["min"]},
    }
    for side in (AFTER, BEFORE):
        if f"{side}/retained" not in sums:
            continue
        theirs = sums[f"{side}/retained"].tolist()
        per_class = {
            str(label): _share(
                [a for a, asked_for in zip(theirs, labels) if asked_for == label], [a for a, b in zip(called, labels) if b == label]
            )
            for label in scope.retained
        }
        found[side] = {
            "agreement": _share(theirs, called) | {"per_class": per_class},
            "forget_fraction": _share(sums[f"{side}/forgotten"].tolist(), asked),
            "frechet": {FEATURES: frechet_distance(_moments(sums, side), _moments(sums, GOLD))},
            "paired_drift": {FEATURES: paired_drift(below(sums, f"{side}/drift"), scope.retained)},
        }
    return found


def _share(first: Any, second: Any) -> dict[str, Any]:
    """Share of places at which both are the same."""
    same = [a == b for a, b in zip(first, second, strict=True)]
    return proportion(sum(same), len(same)).to_dict()


def _moments(sums: Mapping[str, Tensor], side: str) -> Moments:
    return Moments(n=int(sums[f"{side}/n"].item()), total=sums[f"{side}/total"], outer=sums[f"{side}/outer"])
