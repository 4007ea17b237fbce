"""The gold reference: a model that never saw the forgotten rows, and how far the unlearned one behaves like
it on the other labels."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.evaluation.computations import forgotten_plan, plans
from pipeline.evaluation.confidence import proportion
from pipeline.evaluation.context import AFTER, BEFORE, GOLD, Scope
from pipeline.evaluation.metrics.frechet import frechet_distance
from pipeline.evaluation.metrics.paired_drift import paired_drift
from pipeline.evaluation.metrics.retain_accuracy import retain_shares
from pipeline.evaluation.metrics.table import moments_of, spaces_of
from pipeline.evaluation.partials import below


def gold_result(scope: Scope, drawing: Mapping[str, Tensor]) -> dict[str, Any]:
    """How the gold draws, and how far `after` (and `before`) are from it on the retained labels, from the
    sums of `drawing`.

    agreement: share of (label, seed) that the judge calls alike. frechet: between the two models' images.
    paired_drift: mean distance of the same (label, seed). The model before is the yardstick: it saw the rows
    and is otherwise trained alike. Where samples were named there is no forgotten label, and None stands for
    its share.
    """
    spaces = spaces_of({"drawing": drawing})
    labels = plans(scope)["retained"].labels
    called = drawing[f"{GOLD}/retained/ranked"][:, 0].tolist()
    kept = retain_shares(labels, called, scope.neighbours)
    found: dict[str, Any] = {
        "forget_fraction": _forgotten(scope, drawing, GOLD),
        "retain_accuracy": {"mean": kept["mean"], "min": kept["min"]},
    }
    for side in (AFTER, BEFORE):
        if f"{side}/retained/ranked" not in drawing:
            continue
        theirs = drawing[f"{side}/retained/ranked"][:, 0].tolist()
        per_class = {
            str(label): _share([one for one in zip(theirs, called, labels) if one[2] == label])
            for label in scope.retained
        }
        found[side] = {
            "agreement": _share(list(zip(theirs, called))) | {"per_class": per_class},
            "forget_fraction": _forgotten(scope, drawing, side),
            "frechet": {
                space: frechet_distance(
                    moments_of(drawing, f"{space}/{side}"), moments_of(drawing, f"{space}/{GOLD}")
                )
                for space in spaces
            },
            "paired_drift": {
                space: paired_drift(below(drawing, f"{space}/drift/{side}/{GOLD}"), scope.retained)
                for space in spaces
            },
        }
    return found


def _forgotten(scope: Scope, drawing: Mapping[str, Tensor], side: str) -> dict[str, Any] | None:
    """Share of images under the forgotten labels that are called that class."""
    name = forgotten_plan(scope)
    if not scope.forgotten:
        return None
    return _share(list(zip(drawing[f"{side}/{name}/ranked"][:, 0].tolist(), plans(scope)[name].labels)))


def _share(pairs: list[Any]) -> dict[str, Any]:
    """Share of pairs whose first two are the same."""
    return proportion(sum(pair[0] == pair[1] for pair in pairs), len(pairs)).to_dict()
