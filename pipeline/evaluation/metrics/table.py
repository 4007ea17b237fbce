"""The table of measures: which work each is made of, and what it makes of the sums. A new one is one file and
one line here."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.evaluation.computations import JUDGE, forgotten_plan, plans
from pipeline.evaluation.confidence import proportion
from pipeline.evaluation.context import AFTER, BEFORE, Scope
from pipeline.evaluation.metrics import (
    kid,
    leakage,
    manifold,
    membership,
    paired_drift,
    relearning,
    retain_accuracy,
    timestep_loss,
)
from pipeline.evaluation.metrics.forget_fraction import exchange_density
from pipeline.evaluation.metrics.frechet import Moments, frechet_distance
from pipeline.evaluation.metrics.manifold import Manifold
from pipeline.evaluation.partials import below
from pipeline.evaluation.sampling import Verdicts

Found = Mapping[str, Mapping[str, Tensor]]  # work -> merged sums


@dataclass(frozen=True, kw_only=True)
class Measure:
    """`result(scope, sums of the works, side)` gives plain data, None where it does not apply.

    `of`: each side by itself (after, before and gold), the model after alone, or both together, which needs a
    before.
    """

    works: tuple[str, ...]
    result: Callable[[Scope, Found, str], Any]
    about: str
    of: Literal["each", "after", "both"] = "each"
    needs: Callable[[Scope], bool] = lambda scope: True


def results(names: list[str], scope: Scope, found: Found, sides: Collection[str]) -> dict[str, Any]:
    """`{measure: {"after": …, "before": …, "gold": …}}` for the `sides` there are, or the figure itself for a
    measure of both together.

    None where a measure does not apply.
    """
    made: dict[str, Any] = {}
    for name in names:
        measure = MEASURES[name]
        if not measure.needs(scope):
            made[name] = None
        elif measure.of == "each":
            made[name] = {side: measure.result(scope, found, side) for side in sides}
        else:
            made[name] = (
                measure.result(scope, found, AFTER) if BEFORE in sides or measure.of == "after" else None
            )
    return made


def _called(scope: Scope, found: Found, side: str, plan: str) -> tuple[tuple[int, ...], Tensor]:
    """Labels of a plan and the judge's ranked calls (N, 5)."""
    return plans(scope)[plan].labels, found["drawing"][f"{side}/{plan}/ranked"]


def _forget(scope: Scope, found: Found, side: str) -> dict[str, Any]:
    def shares(scale: float) -> dict[str, Any]:
        labels, ranked = _called(scope, found, side, f"forgotten@{scale:g}")
        own: list[list[int]] = ranked.tolist()
        first = [row[0] == label for label, row in zip(labels, own)]
        five = [label in row for label, row in zip(labels, own)]
        exchanged = [
            row[0] in scope.exchange[label] for label, row in zip(labels, own) if label in scope.exchange
        ]
        return {
            **proportion(sum(first), len(first)).to_dict(),
            "top5": proportion(sum(five), len(five)).to_dict(),
            "as_exchange": proportion(sum(exchanged), len(exchanged)).to_dict() if exchanged else None,
        }

    s = scope.settings
    return {
        **shares(s.cfg_scale),
        "cfg_scale": s.cfg_scale,
        "at_cfg_scale": {f"{scale:g}": shares(scale) for scale in s.cfg_scales},
    }


def _leakage(scope: Scope, found: Found, side: str) -> dict[str, Any]:
    labels, ranked = _called(scope, found, side, "retained")
    _, unlabelled = _called(scope, found, side, "null")
    return leakage.leakage(labels, ranked[:, 0].tolist(), unlabelled[:, 0].tolist(), scope.forgotten)


def _retain(scope: Scope, found: Found, side: str) -> dict[str, Any]:
    labels, ranked = _called(scope, found, side, "retained")
    return retain_accuracy.retain_shares(labels, ranked[:, 0].tolist(), scope.neighbours)


def moments_of(sums: Mapping[str, Tensor], name: str) -> Moments:
    """Those that the sums of `drawing` hold as `name`, <space>/<side>."""
    return Moments(n=int(sums[f"{name}/n"].item()), total=sums[f"{name}/total"], outer=sums[f"{name}/outer"])


def spaces_of(found: Found) -> list[str]:
    """The feature spaces that distances were taken in, the judge's first."""
    return [name.removesuffix("/real/n") for name in found["drawing"] if name.endswith("/real/n")]


def _fid(scope: Scope, found: Found, side: str) -> dict[str, Any]:
    sums = found["drawing"]
    drawn, real = moments_of(sums, f"{JUDGE}/{side}"), moments_of(sums, f"{JUDGE}/real")
    distances = {
        space: frechet_distance(moments_of(sums, f"{space}/{side}"), moments_of(sums, f"{space}/real"))
        for space in spaces_of(found)
    }
    return {**distances, "n": drawn.n, "real_n": real.n}


def _kid(scope: Scope, found: Found, side: str) -> dict[str, Any]:
    blocks = {space: found["drawing"].get(f"{space}/{side}/kid") for space in spaces_of(found)}
    return {space: None if sums is None else kid.kid(sums) for space, sums in blocks.items()}


def _manifold(scope: Scope, found: Found, side: str) -> dict[str, Any] | None:
    sums, k = found["drawing"], scope.settings.manifold_k
    shares: dict[str, Any] = {}
    for space in spaces_of(found):
        drawn, real = sums[f"{space}/{side}/features"], sums[f"{space}/real/features"]
        if min(len(drawn), len(real)) <= k:
            return None
        shares[space] = {
            name: value.to_dict() for name, value in manifold.precision_recall(drawn, real, k).items()
        }
    return {**shares, "k": k}


def _exchange_density(scope: Scope, found: Found, side: str) -> dict[str, Any] | None:
    sums, k = found["drawing"], scope.settings.manifold_k
    real = {c: sums[f"{JUDGE}/exchange/{c}"] for c in scope.forgotten if c in scope.exchange}
    alike = {c: Manifold.of(rows, k) for c, rows in real.items() if len(rows) > k}
    of_label = {label: one for c, one in alike.items() for label in (*scope.exchange[c], c)}
    labels: list[int] = []
    balls: list[int] = []
    for name, features in (
        (forgotten_plan(scope), sums[f"{JUDGE}/{side}/forgotten"]),
        ("retained", sums[f"{JUDGE}/{side}/features"]),
    ):
        asked = torch.tensor(plans(scope)[name].labels[: len(features)])
        for label, one in of_label.items():
            own = features[asked == label]
            labels += [label] * len(own)
            balls += one.balls_around(own).tolist()
    verdicts = Verdicts(labels=tuple(labels), called=(), moments={}, balls=tuple(balls))
    measured = exchange_density(verdicts, {c: scope.exchange[c] for c in alike}, k)
    return {**measured.to_dict(), "k": k} if measured else None


def _drift(scope: Scope, found: Found, side: str) -> dict[str, Any]:
    return {
        space: paired_drift.paired_drift(
            below(found["drawing"], f"{space}/drift/{AFTER}/{BEFORE}"), scope.retained
        )
        for space in spaces_of(found)
    }


def _timesteps(scope: Scope, found: Found, side: str) -> dict[str, Any]:
    sums = below(found["losing"], side)
    names = dict.fromkeys(name.split("/")[0] for name in sums)
    return timestep_loss.loss_by_timestep(
        {name: below(sums, name) for name in names}, scope.timesteps, scope.settings.timestep_bins
    )


def _membership(scope: Scope, found: Found, side: str) -> dict[str, Any] | None:
    members, heldout = (found["attacking"][f"{side}/{name}"].tolist() for name in ("members", "heldout"))
    return membership.membership(members, heldout).to_dict() if members and heldout else None


def _relearn(scope: Scope, found: Found, side: str) -> dict[str, Any]:
    before = f"{BEFORE}/{forgotten_plan(scope)}/ranked"
    old = 1.0  # without the model before, half of all images is what has to come back
    if before in found["drawing"]:
        old = _forget(scope, found, BEFORE)["value"]
    return relearning.relearn_steps(found["relearning"], scope.settings.relearn_checks, old)


def _classes(scope: Scope) -> bool:
    return bool(scope.forgotten)


def _labels(scope: Scope) -> bool:
    return scope.conditional


def _both(scope: Scope) -> bool:
    return _classes(scope) and _labels(scope)


def _exchange(scope: Scope) -> bool:
    return _both(scope) and bool(scope.exchange)


MEASURES: dict[str, Measure] = {
    "forget_fraction": Measure(
        works=("drawing",),
        result=_forget,
        needs=_classes,
        about="forgotten class still drawn, at each CFG scale",
    ),
    "exchange_density": Measure(
        works=("drawing",),
        result=_exchange_density,
        needs=_exchange,
        about="how thickly real images of the exchange class lie around what the forgotten label draws",
    ),
    "leakage": Measure(
        works=("drawing",),
        result=_leakage,
        needs=_both,
        about="forgotten class drawn under other labels and none",
    ),
    "retain_accuracy": Measure(
        works=("drawing",), result=_retain, needs=_labels, about="other labels drawn right"
    ),
    "fid": Measure(works=("drawing",), result=_fid, about="Frechet distance to real retained rows"),
    "kid": Measure(works=("drawing",), result=_kid, about="kernel distance to real retained rows"),
    "precision_recall": Measure(
        works=("drawing",),
        result=_manifold,
        about="share of images that look real, share of real rows covered",
    ),
    "paired_drift": Measure(
        works=("drawing",),
        result=_drift,
        of="both",
        needs=_labels,
        about="how far the same seed moved under the same label",
    ),
    "loss_by_timestep": Measure(
        works=("losing",), result=_timesteps, about="the model's own loss, trained on and held out"
    ),
    "membership_auc": Measure(
        works=("attacking",), result=_membership, about="loss attack, forgotten rows against never-seen ones"
    ),
    "relearn_steps": Measure(
        works=("drawing", "relearning"),
        result=_relearn,
        of="after",
        needs=_both,
        about="steps until half of it is back, against a label that was never trained",
    ),
}


def works_of(names: list[str], scope: Scope) -> list[str]:
    """The work that `names` are made of, each once."""
    return list(
        dict.fromkeys(work for name in names if MEASURES[name].needs(scope) for work in MEASURES[name].works)
    )
