"""The report's curves: what was forgotten, what was kept, the losses and gradients, step by step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.reports.charts import Chart, Series, keys_of, layout, series_of
from pipeline.reports.text import bound_of, given, number, share

Records = Sequence[Mapping[str, Any]]


def curves(result: Mapping[str, Any], records: Records) -> list[dict[str, Any]]:
    """Every curve of a run that has something to show, as the template draws it."""
    crossed, settled = result.get("first_crossing_step"), result.get("settled_step")
    marks = [(f"settled at {settled}", float(settled))] if settled is not None else []
    if crossed is not None and crossed != settled:
        marks.insert(0, (f"first under at {crossed}", float(crossed)))
    charts = [
        *_forgetting(result, records, marks),
        _retention(result, records),
        *_optimisation(records),
    ]
    last = max((float(record["step"]) for record in records if "step" in record), default=0.0)
    return [layers for chart in charts if (layers := layout(chart, last_step=last)) is not None]


def _forgetting(
    result: Mapping[str, Any], records: Records, marks: Sequence[tuple[str, float]]
) -> list[Chart]:
    """What the forgotten labels sample, how like real images that is, what a loss attack makes of named
    samples."""
    target, auc_target = (bound_of(result, name) for name in ("forget_fraction", "membership_auc"))
    density = _measured(records, "exchange_density", "forgotten label")
    before = (result.get("before") or {}).get("exchange_density") or {}
    own: float | None = (before.get("own") or {}).get("value")
    auc_bounds = [("chance", 0.5)]
    if auc_target is not None:
        auc_bounds.append((f"target {number(auc_target)}", auc_target))
    return [
        Chart(
            title="Forgotten class still sampled",
            note=(
                "Share of images under the forgotten label that still show it, with its 95 % interval; what"
                " they show instead."
            ),
            series=[
                _measured(records, "forget_fraction", "forgotten class", band=True),
                _measured(records, "exchange_fraction", "exchange class", 3),
            ],
            y_range=(0.0, 1.0),
            bounds=[(f"target {share(target)}", target)] if target is not None else [],
            marks=marks,
            percent=True,
        ),
        Chart(
            title="Likeness of what is sampled instead",
            note=(
                "Density of real images of the exchange class around what the forgotten label samples; 0:"
                " nothing real is near."
            ),
            series=[density],
            y_range=(0.0, 1.1 * max([y for _, y in density.points] + [own or 0.0]) or 1.0),
            bounds=[(f"exchange label's own, before: {own:.2f}", own)] if own is not None else [],
            marks=marks,
        ),
        Chart(
            title="Loss attack on the named samples",
            note=(
                "How well their losses tell them from never-seen images, with its 95 % interval: at 0.5 not"
                " at all."
            ),
            series=[_measured(records, "membership_auc", "area under the curve", band=True)],
            y_range=(0.0, 1.0),
            bounds=auc_bounds,
            marks=marks,
        ),
    ]


def _retention(result: Mapping[str, Any], records: Records) -> Chart:
    """How often the other labels are predicted right, beside the gate's bounds."""
    mean = _measured(records, "retain_accuracy/mean", "mean of the retained classes", band=True)
    lowest = _measured(records, "retain_accuracy/min", "lowest class", 2)
    floors = (("mean", "bound of the mean"), ("min", "bound of the lowest"))
    bounds = [
        (f"{name} {share(floor)}", floor)
        for key, name in floors
        if (floor := bound_of(result, f"retain_accuracy/{key}")) is not None
    ]
    depth = min([y for one in (mean, lowest) for _, y in one.points] + [y for _, y in bounds] + [0.95])
    named_samples = bound_of(result, "membership_auc") is not None
    return Chart(
        title="Classes predicted right" if named_samples else "Other classes predicted right",
        note=(
            "Share of images under every label that is kept that the judge takes for that class, with the"
            " mean's 95 % interval."
        ),
        series=[lowest, mean],
        y_range=(max(0.0, math.floor(10 * (depth - 0.02)) / 10), 1.0),
        bounds=bounds,
        percent=True,
    )


def _optimisation(records: Records) -> list[Chart]:
    """Losses, the angle between the gradients, distances and norms, step by step."""
    phases = dict.fromkeys(
        str(record["phase"]) for record in records if record.get("phase") and given(record.get("cos"))
    )
    return [
        Chart(
            title="Losses",
            note="Mean over the workers: what is to be kept should stay low, what is forgotten may rise.",
            series=_lines(records, "step", "loss/"),
        ),
        Chart(
            title="Angle between the gradients",
            note=(
                "Cosine of the gradients of the forget loss and the kept loss: at 0 neither undoes the other."
            ),
            series=[
                series_of(records, "step", "cos", f"{phase} steps", color, phase=phase)
                for color, phase in enumerate(list(phases)[:4], 1)
            ],
        ),
        Chart(
            title="Frechet distance of the retained classes",
            note=(
                "Between sampled and real images; lower is closer. Samples are few, so compare it within this"
                " run only."
            ),
            series=_lines(records, "evaluation", "fid/", dots=True),
        ),
        Chart(
            title="Gradient norms",
            note="Length of what each step moves along.",
            series=_lines(records, "step", "grad_norm/"),
        ),
    ]


def _measured(records: Records, key: str, name: str, color: int = 1, *, band: bool = False) -> Series:
    return series_of(records, "evaluation", key, name, color, band=band, dots=True)


def _lines(records: Records, kind: str, prefix: str, *, dots: bool = False) -> list[Series]:
    keys = keys_of(records, kind, prefix)[:4]
    return [
        series_of(records, kind, key, key.removeprefix(prefix), color, dots=dots)
        for color, key in enumerate(keys, 1)
    ]
