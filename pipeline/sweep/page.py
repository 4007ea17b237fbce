"""sweep.html: the winner, the front, the curves and the table on one page that needs nothing else."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from pipeline.reports import text
from pipeline.reports.charts import Chart, Series, layout, value_range
from pipeline.reports.html import environment
from pipeline.sweep import scores
from pipeline.sweep.scores import OBJECTIVES
from pipeline.sweep.space import shown
from pipeline.sweep.terminal import counts

TEMPLATES = Path(__file__).with_name("templates")
Summary = Mapping[str, Any]
Checks = Mapping[int, Sequence[Mapping[str, Any]]]


def render_page(
    summary: Summary, checks: Checks, settings_yaml: str, *, target: float, last_step: int
) -> str:
    """The page for `summary` (as in sweep.json) and the `checks` of every trial; `target` is the bound that
    makes a trial settle. Every text from outside is escaped."""
    name_of = text.namer(summary["class_names"])
    winner = summary["winner"]
    return (
        environment(TEMPLATES)
        .get_template("sweep.html")
        .render(
            sweep_id=summary["sweep_id"],
            title=f"Sweep: {text.title_of(summary['request'], name_of)}",
            gate_state=_gate_state(winner),
            lead=_lead(summary),
            tiles=_tiles(summary),
            selection=_selection(summary),
            verified=_verified(summary),
            winner=winner,
            charts=[
                chart_layout
                for chart in (*_fronts(summary), _curves(summary, checks, target))
                if (chart_layout := layout(chart, last_step=last_step)) is not None
            ],
            importance=[
                (OBJECTIVES[name].title, sorted(shares.items(), key=lambda item: -item[1]))
                for name, shares in summary["importance"].items()
            ],
            finished=len(_finished(summary)),
            settings=list(summary["base"]),
            table=_table(summary),
            failed=[
                (row["number"], row["attempts"], row["reason"])
                for row in summary["trials"]
                if row["status"] == scores.FAILED
            ],
            retried=[
                row["number"]
                for row in summary["trials"]
                if row["attempts"] > 1 and row["status"] != scores.FAILED
            ],
            timing=_timing(summary),
            settings_yaml=settings_yaml,
        )
    )


def _finished(summary: Summary) -> list[Mapping[str, Any]]:
    return [
        row for row in summary["trials"] if row["status"] == scores.FINISHED and row["values"] is not None
    ]


def _best(summary: Summary) -> int | None:
    winner = summary["winner"]
    return winner["number"] if winner and winner["number"] is not None else (summary["ranking"] or [None])[0]


def _row(summary: Summary, number: int | None) -> Mapping[str, Any] | None:
    return next((row for row in summary["trials"] if row["number"] == number), None)


def _gate_state(winner: Mapping[str, Any]) -> dict[str, str]:
    if winner["number"] is None:
        return {"state": "bad", "text": "no winner holds on fresh seeds"}
    return {"state": "good", "text": f"trial {winner['number']} registered"}


def _settled(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not run"
    return "not settled" if row["settled_step"] is None else str(row["settled_step"])


def _lead(summary: Summary) -> str:
    best, default = _row(summary, _best(summary)), _row(summary, summary["default_trial"])
    lead = f"{len(summary['trials'])} trials under the same budget. "
    if best is not None:
        lead += (
            f"Best is trial {best['number']} ({shown(best['settings'])}), settled at step {_settled(best)}; "
        )
        lead += (
            f"the default settled at {_settled(default)}."
            if default is not None
            else "the default was not among the trials."
        )
    return lead


def _tiles(summary: Summary) -> list[dict[str, str]]:
    best, default = _row(summary, _best(summary)), _row(summary, summary["default_trial"])
    seconds = summary["seconds"]
    over = seconds["overhead_per_trial"]
    tiles = [
        ("Trials", str(len(summary["trials"])), counts(summary)),
        ("Best settles at step", _settled(best), f"trial {best['number']}" if best else ""),
        ("Default settles at step", _settled(default), f"trial {default['number']}" if default else ""),
        (
            "Time of all trials",
            text.seconds(seconds["searched"]),
            f"{text.seconds(seconds.get('total'))} in all",
        ),
        (
            "Overhead per trial",
            text.NOT_MEASURED if over is None else text.seconds(over),
            "beyond steps and evaluation",
        ),
    ]
    return [{"title": title, "value": value, "note": note} for title, value, note in tiles]


def _selection(summary: Summary) -> str:
    """What choosing the best of many does to its figures, with those of this sweep."""
    trials, verified = len(summary["trials"]), summary["winner"]["verified"]
    note = (
        f"The best of {trials} trials was in part the luckiest: on the noise it was chosen by, its figures"
        " are too good on average. So the best were measured again, the base model beside them, on seeds"
        " that no trial saw; only those figures count for the gate and the registry."
    )
    if len(verified) > 1:
        note += (
            f" {len(verified)} trials were verified, best first, until one held: a choice again, if a small"
            " one."
        )
    return note


def _verified(summary: Summary) -> list[dict[str, Any]]:
    rows = []
    for attempt in summary["winner"]["verified"]:
        row = _row(summary, attempt["number"])
        assert row is not None
        rows.append(
            {
                "number": attempt["number"],
                "cells": [
                    (OBJECTIVES[name].title, _value_text(name, old), _value_text(name, new))
                    for name, old, new in scores.measured_twice(row["after"], attempt["after"])
                ],
                "passed": attempt["gate"]["passed"],
                "failed": ", ".join(
                    check["name"] for check in attempt["gate"]["checks"] if not check["passed"]
                ),
            }
        )
    return rows


def _table(summary: Summary) -> list[dict[str, Any]]:
    """A line for every trial, best first, those that did not finish last."""
    places = {number: place for place, number in enumerate(summary["ranking"], 1)}
    rows = sorted(
        summary["trials"], key=lambda row: (places.get(row["number"], len(places) + 1), row["number"])
    )
    return [
        {
            "place": places.get(row["number"], ""),
            "number": row["number"],
            "marks": [
                mark
                for mark, applies in (
                    ("winner", row["number"] == summary["winner"]["number"]),
                    ("default", row["number"] == summary["default_trial"]),
                    ("front", row["number"] in summary["front"]),
                )
                if applies
            ],
            "settings": [
                (value, f"{value:.3g}" if isinstance(value, float) else str(value))
                for value in row["settings"].values()
            ],
            "status": row["status"],
            "settled": row["settled_step"],
            "forget": _measure(row, "forget_fraction", "value"),
            "bound": _measure(row, "forget_fraction", "high"),
            "mean": _measure(row, "retain_accuracy", "mean"),
            "lowest": _measure(row, "retain_accuracy", "min"),
            "gate": row["gate_passed"] if row["status"] == scores.FINISHED else None,
            "steps_s": (row["seconds"] or {}).get("steps"),
            "wall_s": (row["seconds"] or {}).get("wall"),
        }
        for row in rows
    ]


def _measure(row: Mapping[str, Any], *path: str) -> float | None:
    value: Any = row["after"]
    for key in path:
        value = None if value is None else value.get(key)
    return value


def _timing(summary: Summary) -> list[tuple[str, str]]:
    seconds = summary["seconds"]
    rows = [
        ("All trials", text.seconds(seconds["searched"])),
        ("In steps", text.seconds(seconds["steps"])),
        ("In evaluation", text.seconds(seconds["evaluation"])),
        ("Beyond, per trial", text.seconds(seconds["overhead_per_trial"])),
        ("Beyond, first trial", text.seconds(seconds["overhead_first"])),
    ]
    return rows


def _fronts(summary: Summary) -> list[Chart]:
    """The finished trials by each two of the objectives."""
    names = summary["objectives"]
    return [_front(summary, a, b) for a, b in combinations(range(len(names)), 2)]


def _front(summary: Summary, a: int, b: int) -> Chart:
    x, y = (OBJECTIVES[summary["objectives"][index]] for index in (a, b))
    points: dict[tuple[float, float], list[int]] = {}
    for row in _finished(summary):
        points.setdefault((row["values"][a], row["values"][b]), []).append(row["number"])
    front, default = set(summary["front"]), summary["default_trial"]
    best = [point for point, numbers in points.items() if front & set(numbers)]
    unsettled = "settled_step" in summary["objectives"] and any(
        row["settled_step"] is None for row in _finished(summary)
    )
    return Chart(
        title=f"{y.title[0].upper()}{y.title[1:]} against {x.title}",
        note=(
            "On the front: no other trial is better in every objective. Numbers name trials."
            + (" A trial that did not settle stands a whole window after its last step." if unsettled else "")
        ),
        series=[
            Series(name="on the front", color=1, points=sorted(best), dots=True, line=False),
            Series(
                name="other trials",
                color=3,
                points=sorted(point for point in points if point not in best),
                dots=True,
                line=False,
            ),
        ],
        x_range=value_range([point[0] for point in points]),
        labels=[
            (*point, ", ".join(map(str, numbers)) + " default" * (default in numbers))
            for point, numbers in points.items()
        ],
        percent=y.percent,
        x_percent=x.percent,
        x_title=x.title,
    )


def _curves(summary: Summary, checks: Checks, target: float) -> Chart:
    """The upper bound at every check of every trial: settled is who stays below the target."""
    classes = summary["request"]["classes"] and not summary["request"]["sample_ids"]
    key = "forget_fraction/high" if classes else "membership_auc/high"
    best, default = _best(summary), summary["default_trial"]
    colors = {default: (2, f"the default, trial {default}"), best: (1, f"the best, trial {best}")}
    curves = []
    for number, records in checks.items():
        points = [(float(r["step"]), float(r[key])) for r in records if r.get(key) is not None]
        color, name = colors.get(number, (0, f"trial {number}"))
        curves.append(Series(name=name, color=color, points=points))
    return Chart(
        title="Forgetting, check by check",
        note=(
            "Upper 95 % bound. A trial has settled when it stays below the dashed target for a whole window."
        ),
        series=sorted(curves, key=lambda curve: bool(curve.color)),
        y_range=(0.0, 1.0),
        bounds=[(f"target {text.share(target)}", target)],
        percent=True,
    )


def _value_text(name: str, value: float) -> str:
    return f"{100 * value:.3g}\u00a0%" if OBJECTIVES[name].percent else f"{value:.4g}"
