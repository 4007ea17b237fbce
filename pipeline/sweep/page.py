"""sweep.html: the table, the front and the plots on one page that needs nothing else."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from pipeline.reports import text
from pipeline.sweep import plots, scores
from pipeline.sweep.scores import OBJECTIVES

Summary = Mapping[str, Any]
Checks = Mapping[int, Sequence[Mapping[str, Any]]]


def figures(summary: Summary, checks: Checks, *, target: float, last: int) -> dict[str, str]:
    """The plots by name, each an SVG that stands alone."""
    names, rows = summary["objectives"], _finished(summary)
    best, default = _best(summary), summary["default_trial"]
    drawn = {}
    for a, b in combinations(range(len(names)), 2):
        name = "front" if len(names) == 2 else f"front-{_plain(names[a])}-{_plain(names[b])}"
        drawn[name] = plots.scatter(rows, names, (a, b), summary["front"], default)
    drawn["parallel-coordinates"] = plots.parallel(rows, list(summary["base"]), names, best, default)
    drawn["importance"] = plots.bars(summary["importance"])
    key = (
        "forget_fraction/high"
        if summary["request"]["classes"] and not summary["request"]["sample_ids"]
        else "membership_auc/high"
    )
    drawn["curves"] = plots.curves(checks, key, best, default, target, last)
    return drawn


def render_page(summary: Summary, drawn: Mapping[str, str], settings_yaml: str) -> str:
    """The page for `summary` (as in sweep.json) with the plots of `figures`; every text from outside is
    escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folders = [Path(__file__).with_name("templates"), Path(text.__file__).with_name("templates")]
    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    named = text.namer(summary["class_names"])
    winner = summary["winner"]
    return environment.get_template("sweep.html").render(
        sweep_id=summary["sweep_id"],
        title=f"Sweep: {text.title_of(summary['request'], named)}",
        verdict=_verdict(winner),
        lead=_lead(summary),
        tiles=_tiles(summary),
        selection=_selection(summary),
        verified=_verified(summary),
        winner=winner,
        plots=[
            (_title(name), _note(name, summary), svg.replace('class="sp alone"', 'class="sp"'))
            for name, svg in drawn.items()
        ],
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


def _finished(summary: Summary) -> list[Mapping[str, Any]]:
    return [
        row for row in summary["trials"] if row["status"] == scores.FINISHED and row["values"] is not None
    ]


def _best(summary: Summary) -> int | None:
    winner = summary["winner"]
    return winner["number"] if winner and winner["number"] is not None else (summary["ranking"] or [None])[0]


def _row(summary: Summary, number: int | None) -> Mapping[str, Any] | None:
    return next((row for row in summary["trials"] if row["number"] == number), None)


def _verdict(winner: Mapping[str, Any]) -> dict[str, str]:
    if winner["number"] is None:
        return {"state": "bad", "text": "no winner holds on fresh seeds"}
    return {"state": "good", "text": f"trial {winner['number']} registered"}


def _settled(row: Mapping[str, Any] | None) -> str:
    return (
        "not run"
        if row is None
        else "not settled"
        if row["settled_step"] is None
        else str(row["settled_step"])
    )


def _lead(summary: Summary) -> str:
    best, default = _row(summary, _best(summary)), _row(summary, summary["default_trial"])
    text = f"{len(summary['trials'])} trials under the same budget. "
    if best is not None:
        text += (
            f"Best is trial {best['number']} ({_settings_text(best['settings'])}), settled at step"
            f" {_settled(best)}; "
        )
        text += (
            f"the default settled at {_settled(default)}."
            if default is not None
            else "the default was not among the trials."
        )
    return text


def _tiles(summary: Summary) -> list[dict[str, str]]:
    best, default, seconds = (
        _row(summary, _best(summary)),
        _row(summary, summary["default_trial"]),
        summary["seconds"],
    )
    counts = {
        status: sum(row["status"] == status for row in summary["trials"])
        for status in (scores.FINISHED, scores.STOPPED, scores.FAILED)
    }
    over = seconds["overhead_per_trial"]
    return [
        {
            "title": "Trials",
            "value": str(len(summary["trials"])),
            "note": ", ".join(f"{n} {status}" for status, n in counts.items() if n),
        },
        {
            "title": "Best settles at step",
            "value": _settled(best),
            "note": f"trial {best['number']}" if best else "",
        },
        {
            "title": "Default settles at step",
            "value": _settled(default),
            "note": f"trial {default['number']}" if default else "",
        },
        {
            "title": "Time of all trials",
            "value": text.seconds(seconds["searched"]),
            "note": f"{text.seconds(seconds.get('total'))} in all",
        },
        {
            "title": "Overhead per trial",
            "value": text.NOT_MEASURED if over is None else text.seconds(over),
            "note": "beyond steps and evaluation",
        },
    ]


def _selection(summary: Summary) -> str:
    """What choosing the best of many does to its figures, with those of this sweep."""
    trials, verified = len(summary["trials"]), summary["winner"]["verified"]
    text = (
        f"The best of {trials} trials was in part the luckiest: on the noise it was chosen by, its figures"
        " are too good on average. So the best were measured again, the base model beside them, on seeds"
        " that no trial saw; only those figures count for the gate and the registry."
    )
    if len(verified) > 1:
        text += (
            f" {len(verified)} trials were verified, best first, until one held: a choice again, if a small"
            " one."
        )
    return text


def _verified(summary: Summary) -> list[dict[str, Any]]:
    rows = []
    for attempt in summary["winner"]["verified"]:
        row = _row(summary, attempt["number"])
        assert row is not None
        rows.append(
            {
                "number": attempt["number"],
                "cells": [
                    (OBJECTIVES[name].title, plots.value_text(name, old), plots.value_text(name, new))
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
    found: Any = row["after"]
    for key in path:
        found = None if found is None else found.get(key)
    return found


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


def _settings_text(settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key.rsplit('.', 1)[-1]} {f'{value:.3g}' if isinstance(value, float) else value}"
        for key, value in settings.items()
    )


def _title(name: str) -> str:
    titles = {
        "parallel-coordinates": "Parallel coordinates",
        "importance": "What mattered",
        "curves": "Forgetting, check by check",
    }
    return titles.get(name, "The front")


def _note(name: str, summary: Summary) -> str:
    if name == "importance":
        return (
            f"Share of an objective's variance over {len(_finished(summary))} finished trials (fANOVA); with"
            " few trials a hint, no more."
        )
    if name == "parallel-coordinates":
        return (
            "A line for every finished trial; the best in blue, the default in orange. Point at a line for"
            " its settings."
        )
    if name == "curves":
        return (
            "A trial has settled when its upper bound stays below the dashed target for the whole window."
            " Best in blue, default in orange."
        )
    never = "settled_step" in summary["objectives"] and any(
        row["settled_step"] is None for row in _finished(summary)
    )
    return (
        "Filled: no other trial is better in every objective. Ringed: the default. Numbers name trials."
        + (" A trial that did not settle stands a whole window after its last step." if never else "")
    )


def _plain(name: str) -> str:
    return name.replace("/", "-").replace("_", "-")
