"""The report's sections on what was tried to bring the class back, the further measures and the gold
reference, as plain data."""

from collections.abc import Mapping
from typing import Any

from pipeline.reports.charts import Chart, Series, layout
from pipeline.reports.evaluation_table import cell, measure_lines
from pipeline.reports.text import given, number, share

KINDS = {
    "none": "No attack",
    "finetune": "Benign fine-tuning",
    "quantise": "Rounded weights",
    "sampler": "Another way of drawing",
    "embedding": "Free label embedding",
}
MEANING = {
    ("none", "holds"): "As it stands, the class is not drawn.",
    ("none", "returns"): "As it stands, the class is still drawn.",
    ("finetune", "holds"): "Training it further on kept images does not bring the class back.",
    (
        "finetune",
        "returns",
    ): "Training it further on kept images brings the class back: measure again after any training.",
    ("quantise", "holds"): "Rounding the weights does not bring the class back.",
    (
        "quantise",
        "returns",
    ): "The rounded model draws the class: judge the weights in the form that will serve.",
    ("sampler", "holds"): "Drawing in this way does not bring the class back.",
    ("sampler", "returns"): "The class is forgotten only for the sampler that it was judged with.",
    (
        "embedding",
        "holds",
    ): "With the network as it is, no label embedding that was tried leads to the class.",
    (
        "embedding",
        "returns",
    ): (
        "The network can still draw the class: its label does not lead there any more, but an embedding made"
        " by whoever has the weights and some images does. A model that never saw it can be led there some of"
        " the way too: compare with one."
    ),
}
DOUBT = {
    "open": "The images are too few to tell: draw more.",
    "failed": "It could not be carried out, which proves nothing.",
}
STATES = {
    "holds": ("good", "holds"),
    "returns": ("bad", "comes back"),
    "open": ("open", "undecided"),
    "failed": ("open", "failed"),
}
TITLES = {
    "forget_fraction": "Forgotten class drawn",
    "exchange_density": "Density of real images of the exchange class",
    "leakage": "Forgotten class under other labels",
    "retain_accuracy": "Retained classes drawn right",
    "fid": "Frechet distance",
    "kid": "Kernel distance",
    "precision_recall": "Real-looking and covered",
    "paired_drift": "Drift of the same seed",
    "membership_auc": "Loss attack",
    "relearn_steps": "Steps to relearn half",
}
WORDS = (
    ("judge, ", ""),
    ("at_cfg_scale, ", "CFG "),
    ("top5", "among the judge's first five"),
    ("as_exchange", "drawn as the exchange class"),
    ("tpr_at_1_fpr", "found at 1 % false alarms"),
    ("auc", "area under the curve, chance is 0.5"),
    ("loss_forget", "loss on forgotten images"),
    ("loss_heldout", "loss on never-seen images"),
    ("min", "lowest class"),
    ("unpaired", "distance between two seeds of one class"),
    ("relative", "drift as a share of that"),
)
WHOLE = {  # titles that are replaced as a whole
    "judge": "in the judge's features",
    "inception": "in Inception's features",
    "dinov2": "in DINOv2's features",
    "forgotten": "around images of the forgotten labels",
    "own": "around the exchange labels' own images",
}
UNSAID = ("k", "n", "real n")
SHARES = ("forget_fraction", "leakage", "retain_accuracy", "precision_recall")


def battery_section(battery: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The attacks by kind, each with its verdict, and what a kind's verdicts mean, said once; None when the
    battery was not run."""
    if not battery:
        return None
    groups: dict[str, dict[str, Any]] = {}
    for line in battery["attacks"]:
        state, text = STATES[line["verdict"]]
        kept = (line["retain_accuracy"] or {}).get("mean")
        group = groups.setdefault(line["kind"], {"title": KINDS[line["kind"]], "rows": [], "meanings": {}})
        group["rows"].append(
            {
                "about": line["about"][0].upper() + line["about"][1:],
                "forget": _share(line["forget_fraction"]),
                "note": line["error"] or ("" if kept is None else f"Others right: {share(kept['value'])}"),
                "state": state,
                "verdict": text,
            }
        )
        group["meanings"][DOUBT.get(line["verdict"]) or MEANING[(line["kind"], line["verdict"])]] = None
    return {"summary": battery_sentence(battery), "held": battery["held"], "groups": list(groups.values())}


def battery_sentence(battery: Mapping[str, Any]) -> str:
    """In one or two sentences: how many attacks it withstood, and which ones it did not."""
    tried = [line for line in battery["attacks"] if line["kind"] != "none"]
    held = [line for line in tried if line["verdict"] == "holds"]
    if len(held) == len(tried):
        return (
            f"It stayed forgotten, under {share(battery['bound'])} beyond doubt, through all {len(tried)}"
            " attacks."
        )
    returned = dict.fromkeys(KINDS[line["kind"]].lower() for line in tried if line["verdict"] == "returns")
    doubt = dict.fromkeys(KINDS[line["kind"]].lower() for line in tried if line["verdict"] in DOUBT)
    said = [f"It stayed forgotten through {len(held)} of {len(tried)} attacks."]
    if returned:
        said.append(f"Brought back by: {', '.join(returned)}.")
    if doubt:
        said.append(f"Not decided: {', '.join(doubt)}.")
    return " ".join(said)


def measures_section(measures: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A row for each figure, grouped by measure: title, then (text, interval) before, after and of the gold;
    not what is a chart."""
    groups = []
    for name, value in (measures or {}).items():
        if name == "loss_by_timestep":
            continue
        show = _share_text if name in SHARES else _number_text
        rows = [
            {
                "title": words,
                "cells": [tuple(text.split("\n")) if "\n" in text else (text, "") for text in cells],
            }
            for title, *cells in measure_lines(name, value, show)
            if (words := _words(title.removeprefix(name).removeprefix(", "))) not in UNSAID
        ]
        groups.append({"title": TITLES[name], "rows": rows})
    return groups


def _words(title: str) -> str:
    if title in WHOLE:
        return WHOLE[title]
    for old, new in WORDS:
        title = title.replace(old, new)
    return title.replace("_", " ") or "in all"


def _share_text(value: Any) -> str:
    """The share and, after a line's end, its interval."""
    if not isinstance(value, Mapping):
        return number(value)
    text, interval = _share(value)
    return "\n".join([text, *([interval] if interval else [])])


def _number_text(value: Any) -> str:
    if not isinstance(value, Mapping):
        return number(value)
    interval = [f"{number(value['low'])} to {number(value['high'])}"] if given(value.get("low")) else []
    return "\n".join([number(value.get("value")), *interval])


def timestep_chart(measures: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Losses of held-out rows (of trained ones where nothing was held out) over the timesteps, at most four
    lines."""
    found = (measures or {}).get("loss_by_timestep")
    if not found:
        return None
    middles = [(first + last) / 2 for first, last in found["after"]["bins"]]
    series: list[Series] = []
    with_gold = found.get("gold") is not None
    for kind, name, sides in (
        ("forget", "forgotten class", ("before", "after", "gold")),
        ("retain", "retained classes", ("after",) if with_gold else ("before", "after")),
    ):
        group = next(
            (f"{kind}_{split}" for split in ("heldout", "train") if f"{kind}_{split}" in found["after"]), None
        )
        for side in sides:
            line = (found.get(side) or {}).get(group)
            if line is None:
                continue
            series.append(
                Series(
                    name=f"{name}, {'never saw it' if side == 'gold' else side}",
                    color=len(series) + 1,
                    points=list(zip(middles, line["mean"])),
                    band=list(zip(middles, line["low"], line["high"])),
                    dots=True,
                )
            )
    chart = Chart(
        title="Loss by timestep",
        note=(
            "The model's own loss on images it was not trained on: noise grows to the right. With the 95 %"
            " interval of the mean."
        ),
        series=series,
        x_title="timestep",
    )
    return layout(chart, last_step=found["after"]["bins"][-1][1])


def gold_section(gold: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How near the unlearned model and the one before are to a model that never saw the class; None without
    one."""
    if not gold:
        return None
    sides = [side for side in ("before", "after") if side in gold]
    rows = [
        ("Judged like it, same label and seed", {side: _share(gold[side]["agreement"]) for side in sides}),
        (
            "Frechet distance to its images",
            {side: (cell(gold[side]["frechet"]["judge"]), "") for side in sides},
        ),
        (
            "Drift from it, same label and seed",
            {side: (cell(gold[side]["paired_drift"]["judge"]["mean"]), "") for side in sides},
        ),
        (
            "Drift between two images of one class",
            {side: (cell(gold[side]["paired_drift"]["judge"]["unpaired"]), "") for side in sides},
        ),
    ]
    classes = [
        {
            "label": int(label),
            **{side: gold[side]["agreement"]["per_class"][label]["value"] for side in sides},
        }
        for label in gold["after"]["agreement"]["per_class"]
    ]
    near = _nearness(gold)
    own, kept = gold["forget_fraction"], gold["retain_accuracy"]["mean"]
    return {
        "summary": (
            f"{gold['name']} never saw the named samples: it draws {share(kept['value'])} of the labels"
            " right." + near.replace("the other labels", "the labels")
            if own is None
            else (
                f"{gold['name']} never saw the class: asked for it, it draws it in {share(own['value'])} of"
                f" {own['n']} images, and draws {share(kept['value'])} of the others right.{near}"
            )
        ),
        "rows": [
            {"title": title, "before": values.get("before"), "after": values.get("after")}
            for title, values in rows
        ],
        "classes": classes,
    }


def _nearness(gold: Mapping[str, Any]) -> str:
    if "before" not in gold:
        return ""
    after, before = (gold[side]["paired_drift"]["judge"]["mean"] for side in ("after", "before"))
    if before == 0:
        return ""
    ratio = after / before
    if ratio <= 1.1:
        return (
            " On the other labels the unlearned model is about as near to it as the model before was."
            if ratio >= 0.9
            else (" On the other labels the unlearned model is nearer to it than the model before was.")
        )
    return (
        f" On the other labels the unlearned model is {ratio:.1f} times as far from it as the model before"
        " was."
    )


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
