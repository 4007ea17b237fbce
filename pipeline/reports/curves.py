"""The report's curves: what was forgotten, what was kept, the losses and gradients, step by step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.reports.charts import Chart, Series, keys_of, layout, series_of
from pipeline.reports.text import bound_of, given, number, share


def curves(result: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every curve of a run that has something to show, as the template draws it."""
    target, floor, lowest_floor = (
        bound_of(result, name) for name in ("forget_fraction", "retain_accuracy/mean", "retain_accuracy/min")
    )
    attacked = bound_of(result, "membership_auc")
    crossed, settled = result.get("first_crossing_step"), result.get("settled_step")
    own: float | None = (((result.get("before") or {}).get("exchange_density") or {}).get("own") or {}).get(
        "value"
    )
    density = series_of(records, "evaluation", "exchange_density", "forgotten label", 1, dots=True)
    marks = [(f"settled at {settled}", float(settled))] if settled is not None else []
    if crossed is not None and crossed != settled:
        marks.insert(0, (f"first under at {crossed}", float(crossed)))
    mean = series_of(
        records, "evaluation", "retain_accuracy/mean", "mean of the retained classes", 1, band=True, dots=True
    )
    lowest = series_of(records, "evaluation", "retain_accuracy/min", "lowest class", 2, dots=True)
    floors = [("bound of the mean", floor), ("bound of the lowest", lowest_floor)]
    floor_lines = [(f"{name} {share(bound)}", bound) for name, bound in floors if bound is not None]
    depth = min(
        [y for one in (mean, lowest) for _, y in one.points] + [bound for _, bound in floor_lines] + [0.95]
    )
    phases = list(
        dict.fromkeys(
            str(record["phase"]) for record in records if record.get("phase") and given(record.get("cos"))
        )
    )
    charts = [
        Chart(
            title="Forgotten class still drawn",
            note=(
                "Share of images under the forgotten label that still show it, with its 95 % interval; what"
                " they show instead."
            ),
            series=[
                series_of(
                    records, "evaluation", "forget_fraction", "forgotten class", 1, band=True, dots=True
                ),
                series_of(records, "evaluation", "exchange_fraction", "exchange class", 3, dots=True),
            ],
            y_range=(0.0, 1.0),
            bounds=[(f"target {share(target)}", target)] if target is not None else [],
            marks=marks,
            percent=True,
        ),
        Chart(
            title="Likeness of what is drawn instead",
            note=(
                "Density of real images of the exchange class around what the forgotten label draws; 0:"
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
            series=[
                series_of(
                    records, "evaluation", "membership_auc", "area under the curve", 1, band=True, dots=True
                )
            ],
            y_range=(0.0, 1.0),
            bounds=[
                ("chance", 0.5),
                *([(f"target {number(attacked)}", attacked)] if attacked is not None else []),
            ],
            marks=marks,
        ),
        Chart(
            title="Classes drawn right" if attacked is not None else "Other classes drawn right",
            note=(
                "Share of images under every label that is kept that the judge takes for that class, with the"
                " mean's 95 % interval."
            ),
            series=[lowest, mean],
            y_range=(max(0.0, math.floor(10 * (depth - 0.02)) / 10), 1.0),
            bounds=floor_lines,
            percent=True,
        ),
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
                for color, phase in enumerate(phases[:4], 1)
            ],
        ),
        Chart(
            title="Frechet distance of the retained classes",
            note=(
                "Between drawn and real images; lower is closer. Samples are few, so compare it within this"
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
    last = max((float(record["step"]) for record in records if "step" in record), default=0.0)
    return [drawn for chart in charts if (drawn := layout(chart, last_step=last)) is not None]


def _lines(
    records: Sequence[Mapping[str, Any]], kind: str, prefix: str, *, dots: bool = False
) -> list[Series]:
    keys = keys_of(records, kind, prefix)[:4]
    return [
        series_of(records, kind, key, key.removeprefix(prefix), color, dots=dots)
        for color, key in enumerate(keys, 1)
    ]
