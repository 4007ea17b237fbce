"""The report's sections on metrics, attacks and the retrained reference, as plain data: titles and meanings
come from the tables of metrics and attacks."""

from collections.abc import Collection, Mapping
from typing import Any

from pipeline.evaluation.attacks.suite import retained_mean, strongest
from pipeline.evaluation.attacks.table import ATTACKS
from pipeline.evaluation.context import AFTER, BEFORE
from pipeline.evaluation.metrics.table import METRICS
from pipeline.reports.charts import Chart, Series, layout
from pipeline.reports.evaluation_table import SIDES, attack_figures, groups
from pipeline.reports.text import given, number, share

Sides = Mapping[str, Mapping[str, Any] | None]  # {side: {metric: result}}
DOUBT = {
    "open": "The images are too few to tell: sample more.",
    "failed": "It could not be carried out, which proves nothing.",
    "skipped": "It was not tried, which proves nothing.",
    "uncompared": "Nothing to compare with: there is no model that never saw the class (evaluate.reference).",
}
STATES = {
    "holds": ("good", "holds"),
    "returns": ("bad", "comes back"),
    "open": ("open", "undecided"),
    "failed": ("open", "failed"),
    "skipped": ("open", "not tried"),
    "uncompared": ("open", "not compared"),
}


def attack_suite_section(attack_suite: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The attacks by kind, each with its state, and what a kind's states mean, said once; None when
    none was tried."""
    if not attack_suite:
        return None
    kinds: dict[str, dict[str, Any]] = {}
    for line in attack_suite["attacks"]:
        attack, (style, text) = ATTACKS[line["kind"]], STATES[line["state"]]
        mean = retained_mean(line)
        group = kinds.setdefault(line["kind"], {"title": attack.title, "rows": [], "meanings": {}})
        group["rows"].append(
            {
                "about": line["about"][0].upper() + line["about"][1:],
                "forget": _figure(line),
                "note": line["error"]
                or " ".join(filter(None, [_others(mean), _compared(line), _second(line), _spent(line)])),
                "state": style,
                "text": text,
            }
        )
        meaning = attack.holds if line["state"] == "holds" else attack.returns
        group["meanings"][DOUBT.get(line["state"]) or meaning] = None
    return {
        "summary": attack_suite_sentence(attack_suite),
        "held": attack_suite["held"],
        "groups": list(kinds.values()),
    }


def _figure(line: Mapping[str, Any]) -> tuple[str, str]:
    if "relearned" in line or "inversion" in line:
        return attack_figures(line)[0], ""
    return _share(line["forget_fraction"])


def _others(mean: float | None) -> str:
    return "" if mean is None else f"Others right: {share(mean)}."


def _compared(line: Mapping[str, Any]) -> str:
    """How a model that never saw the class gives way to the same attack."""
    if "relearned" in line or "inversion" in line:
        theirs = attack_figures(line)[1]
        return f"In a model that never saw the class: {theirs}." if theirs else ""
    if not (reference := line.get("reference")) or not line["excess"]:
        return ""
    return (
        f"In a model that never saw the class: {share(reference['value'])}; here {_points(line['excess'])}."
    )


def _second(line: Mapping[str, Any]) -> str:
    """What a second judge says of the same images."""
    if not (second := line.get("second")) or not second["forget_fraction"]:
        return ""
    text = f"By the second judge {share(second['forget_fraction']['value'])}"
    if not second.get("reference") or not second.get("excess"):
        return f"{text}."
    return f"{text}, there {share(second['reference']['value'])}: {_points(second['excess'])}."


def _points(excess: Mapping[str, Any]) -> str:
    return f"{100 * excess['value']:+.0f} points ({100 * excess['low']:+.0f} to {100 * excess['high']:+.0f})"


def _spent(line: Mapping[str, Any]) -> str:
    """What the attacker spent."""
    if not (budget := line.get("budget")):
        return ""
    return f"With {budget['images']} images of the class, {budget['rows']:,} rows in all at each rate."


def recall_sentence(attack_suite: Mapping[str, Any] | None) -> str | None:
    """In plain words: how often an attacker with images of the class gets it back, here and out of a model
    that never saw it; None where no such attack is in the suite."""
    recalling = [line for line in (attack_suite or {}).get("attacks", []) if "excess" in line]
    best = strongest(attack_suite)
    if best is None:
        skipped = [line for line in recalling if line["state"] == "skipped"]
        return (
            f"An attacker with images of the class was not tried: {skipped[0]['error']}." if skipped else None
        )
    images = "" if best["images"] is None else f" and {best['images']} images of the class"
    count = "one attack" if best["attempts"] == 1 else f"the best of {best['attempts']} attacks"
    text = (
        f"An attacker with the weights{images} gets it back in {share(best['here']['value'])} of samples, by"
        f" {count}; "
    )
    if best["reference"] is None:
        return f"{text}what that is worth is not known: there was no model that never saw it to compare with."
    return f"{text}from a model that never saw it, in {share(best['reference']['value'])}."


def attack_suite_sentence(attack_suite: Mapping[str, Any]) -> str:
    """In a few sentences: how many attacks it withstood, which ones it did not, and how often the best of
    them brings the class back."""
    attacks = [line for line in attack_suite["attacks"] if line["kind"] != "none"]
    resisted = [line for line in attacks if line["state"] == "holds"]
    recalled = recall_sentence(attack_suite)
    if len(resisted) == len(attacks):
        held = (
            f"It stayed forgotten, under {share(attack_suite['bound'])} beyond doubt, through all"
            f" {len(attacks)} attacks."
        )
        return " ".join(filter(None, [held, recalled]))

    def kinds(states: Collection[str]) -> str:
        titles = [ATTACKS[line["kind"]].title.lower() for line in attacks if line["state"] in states]
        return ", ".join(dict.fromkeys(titles))

    sentences = [f"It stayed forgotten through {len(resisted)} of {len(attacks)} attacks."]
    if returned := kinds(("returns",)):
        sentences.append(f"Brought back by: {returned}.")
    if doubt := kinds(DOUBT):
        sentences.append(f"Not decided: {doubt}.")
    return " ".join(filter(None, [*sentences, recalled]))


def metric_groups(sides: Sides, without: Collection[str] = ()) -> list[dict[str, Any]]:
    """A group for each metric: title, meaning, and a row for each figure with (text, interval) before,
    after and of the reference."""
    return [
        {
            "title": group.metric.title,
            "meaning": group.metric.meaning,
            "rows": [
                {
                    "title": title or "in all",
                    "cells": [
                        _cell(figures.get(side), shares=group.metric.shares) if side in figures else ("", "")
                        for side in SIDES
                    ],
                }
                for title, figures in group.rows or [("", dict.fromkeys((BEFORE, AFTER)))]
            ],
        }
        for group in groups(sides)
        if group.name not in without
    ]


def _cell(value: Any, shares: bool) -> tuple[str, str]:
    """A figure and, where it has one, its interval."""
    if shares and (value is None or isinstance(value, Mapping | float)):
        return _share(value if isinstance(value, Mapping) or value is None else {"value": value})
    if not isinstance(value, Mapping):
        return number(value), ""
    of = f", n\u00a0=\u00a0{value['n']}" if given(value.get("n")) else ""
    interval = f"{number(value['low'])} to {number(value['high'])}{of}" if given(value.get("low")) else ""
    return number(value.get("value")), interval


def timestep_chart(sides: Sides) -> dict[str, Any] | None:
    """Losses of held-out rows (of trained ones where nothing was held out) over the timesteps, at most four
    lines."""
    losses = {
        side: result for side, results in sides.items() if (result := (results or {}).get("loss_by_timestep"))
    }
    if AFTER not in losses:
        return None
    bins = losses[AFTER]["bins"]
    middles = [(first + last) / 2 for first, last in bins]
    series: list[Series] = []
    with_reference = "reference" in losses
    for kind, name, sides_shown in (
        ("forget", "forgotten class", ("before", "after", "reference")),
        ("retain", "retained classes", ("after",) if with_reference else ("before", "after")),
    ):
        group = next(
            (f"{kind}_{split}" for split in ("heldout", "train") if f"{kind}_{split}" in losses[AFTER]), None
        )
        for side in sides_shown:
            line = losses.get(side, {}).get(group)
            if line is None:
                continue
            series.append(
                Series(
                    name=f"{name}, {'never saw it' if side == 'reference' else side}",
                    color=len(series) + 1,
                    points=list(zip(middles, line["mean"])),
                    band=list(zip(middles, line["low"], line["high"])),
                    dots=True,
                )
            )
    chart = Chart(
        title=METRICS["loss_by_timestep"].title,
        note=(
            "The model's own loss on images it was not trained on: noise grows to the right. With the 95 %"
            " interval of the mean."
        ),
        series=series,
        x_title="timestep",
    )
    return layout(chart, last_step=bins[-1][1])


def reference_section(reference: Mapping[str, Any] | None, sides: Sides) -> dict[str, Any] | None:
    """How near the unlearned model and the one before are to a model that never saw the class; None without
    one."""
    near = {
        side: result
        for side in (BEFORE, AFTER)
        if (result := (sides.get(side) or {}).get("retrained_reference"))
    }
    if not reference or AFTER not in near:
        return None
    (group,) = metric_groups({side: {"retrained_reference": result} for side, result in near.items()})
    own, accuracy = reference["forget_fraction"], share(reference["retain_accuracy"]["mean"])
    labels = "the labels" if own is None else "the other labels"
    summary = (
        f"{reference['name']} never saw the named samples: it samples {accuracy} of the labels right."
        if own is None
        else f"{reference['name']} never saw the class: asked for it, it samples it in {share(own['value'])}"
        f" of {own['n']} images, and samples {accuracy} of the others right."
    )
    classes = [
        {
            "label": int(label),
            **{side: result["agreement"]["per_class"][label]["value"] for side, result in near.items()},
        }
        for label in near[AFTER]["agreement"]["per_class"]
    ]
    return {"summary": summary + _nearness(near, labels), "rows": group["rows"], "classes": classes}


def _nearness(near: Mapping[str, Any], labels: str) -> str:
    drift = {side: result["paired_drift"]["judge"]["mean"] for side, result in near.items()}
    if not drift.get(BEFORE):
        return ""
    ratio = drift[AFTER] / drift[BEFORE]
    how = (
        "nearer to it than the model before was"
        if ratio < 0.9
        else "about as near to it as the model before was"
        if ratio <= 1.1
        else f"{ratio:.1f} times as far from it as the model before was"
    )
    return f" On {labels} the unlearned model is {how}."


def _share(value: Mapping[str, Any] | None) -> tuple[str, str]:
    """A share as text and, where it has one, its interval with n, after the class that it is of."""
    if value is None:
        return share(None), ""
    of = f"class\u00a0{value['class']}, " if value.get("class") is not None else ""
    interval = (
        f"{share(value['low'])} to {share(value['high'])}, n\u00a0=\u00a0{value['n']}"
        if given(value.get("low"))
        else ""
    )
    return share(value["value"]), of + interval
