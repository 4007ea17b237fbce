"""result.json and the run's records as one page that needs nothing else: no network, no other file."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.gate import NOT_REACHED, forgotten_shares
from pipeline.reports.answers import EARLIER, NOW, answer_rows, role_of
from pipeline.reports.curves import curves
from pipeline.reports.evaluation_sections import (
    attack_suite_section,
    attack_suite_sentence,
    metric_groups,
    reference_section,
    timestep_chart,
)
from pipeline.reports.html import environment
from pipeline.reports.png import grid_address, is_small
from pipeline.reports.text import (
    NOT_MEASURED,
    Namer,
    check_title,
    either,
    exchange_of,
    gate_state,
    namer,
    number,
    seconds,
    selected,
    share,
    summary,
    title_of,
)

Grids = Mapping[str, Mapping[int, np.ndarray]]
DIGESTS = ("base_digest", "weights_digest", "lake_digest", "partition_digest", "code_version")
ALWAYS = {"forget_fraction": None, "exchange_fraction": None}  # named even where they were not measured
APART = ("loss_by_timestep", "retrained_reference")  # metrics with a place of their own
ENDS = {
    "settled": "the settling rule: it stayed below the target through the hold window",
    "retention_floor": "the retention floor: too little was kept",
    "checks": "evaluate.max_checks: the checks were spent",
    "steps": "optim.max_steps: the steps were spent",
}
TIMES = {
    "seconds_to_first_batch": "To the first batch",
    "seconds_per_step": "Per step",
    "seconds_to_forget": "Until forgotten",
    "gpu_seconds": "GPU time",
    "total_seconds": "In all",
}


def render_report(
    result: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    grids: Grids,
    config_yaml: str,
    *,
    class_names: Sequence[str] | None = None,
    note: str | None = None,
) -> str:
    """The page for `result` (as in result.json), `records` (of metrics.jsonl) and sample `grids` (uint8 (n,
    H, W, C) by label, before and after), with a `note` on these. What is null says so; every text from
    outside is escaped."""
    pages = environment()
    pages.filters["share"] = share
    named = namer(class_names)
    request = result.get("request") or {}
    own = {side: {**ALWAYS, **(result.get(side) or {})} for side in ("before", "after")}
    further = {**(result.get("metrics") or {}), "reference": result.get("reference")}
    return pages.get_template("report.html").render(
        run_id=result.get("run_id") or "",
        title=title_of(request, named),
        summary=" ".join(
            [
                summary(result, named),
                *([attack_suite_sentence(result["attack_suite"])] if result.get("attack_suite") else []),
            ]
        ),
        gate_state=gate_state(result),
        tiles=_tiles(result),
        request=_request_rows(request, named),
        answers=answer_rows(result),
        samples=_samples(grids, request, named),
        note=note,
        charts=curves(result, records),
        metrics=metric_groups(own),
        classes=_classes(result, named),
        gate=_gate(result),
        selection=selected(result.get("selection")),
        timing=[(title, seconds((result.get("timing") or {}).get(key))) for key, title in TIMES.items()],
        facts=_facts(result),
        attack_suite=attack_suite_section(result.get("attack_suite")),
        further=metric_groups(further if result.get("metrics") else {}, APART),
        timesteps=timestep_chart(further),
        reference=reference_section(result.get("reference"), further),
        digests=[(key.replace("_", " "), result.get(key) or NOT_MEASURED) for key in DIGESTS],
        method_config=[
            (key, "none" if value is None else value)
            for key, value in (result.get("method_config") or {}).items()
        ],
        config_yaml=config_yaml,
    )


def _tiles(result: Mapping[str, Any]) -> list[dict[str, str]]:
    before, after, timing = (result.get(key) or {} for key in ("before", "after", "timing"))

    def pair(title: str, *path: str) -> dict[str, str]:
        old, new = _at(before, path), _at(after, path)
        return {"title": title, "value": share(new), "note": f"{share(old)} before"}

    settled, steps = result.get("settled_step"), result.get("steps")
    was, now = before.get("membership") or {}, after.get("membership") or {}
    alone = now and not after.get("forget_fraction")  # named samples, and no class beside them
    attack = {
        "title": "Loss attack on them, AUC",
        "value": number(now.get("auc")),
        "note": f"{number(was.get('auc'))} before; chance is 0.5",
    }
    return [
        attack if alone else pair("Forgotten class sampled", "forget_fraction", "value"),
        pair("Classes right" if alone else "Other classes right", "retain_accuracy", "mean"),
        pair("Lowest class right", "retain_accuracy", "min"),
        {
            "title": "Settled at step",
            "value": number(settled) if settled is not None or steps is None else "not settled",
            "note": f"of {number(steps)}" if steps is not None else "",
        },
        {
            "title": "Time to forget",
            "value": seconds(timing.get("seconds_to_forget")),
            "note": f"{seconds(timing.get('total_seconds'))} in all",
        },
    ]


def _request_rows(request: Mapping[str, Any], named: Namer) -> list[tuple[str, str]]:
    exchange = exchange_of(request)
    rows = [
        ("Request", request.get("id") or "no id given"),
        ("Forget", ", ".join(named(label) for label in request.get("classes") or []) or "no whole class"),
        *(
            [("Forgotten earlier", ", ".join(named(label) for label in earlier))]
            if (earlier := request.get("forgotten_earlier"))
            else []
        ),
        ("Samples", request.get("sample_ids") or "none by name"),
        (
            "Exchange",
            ", ".join(f"{named(old)} becomes {either(new, named)}" for old, new in exchange.items())
            or "none",
        ),
        ("Retain", request.get("retain") or NOT_MEASURED),
        ("Reason", request.get("reason") or "none given"),
    ]
    return [(title, str(value)) for title, value in rows]


def _role(label: int, request: Mapping[str, Any]) -> str:
    if role := role_of(label, request):
        return "forgotten" if role == NOW else role
    return "exchange target" if any(label in new for new in exchange_of(request).values()) else "retained"


def _samples(grids: Grids, request: Mapping[str, Any], named: Namer) -> list[dict[str, Any]]:
    labels = {int(label) for side in grids.values() for label in side}
    order = {"forgotten": 0, EARLIER: 1, "exchange target": 2, "retained": 3}
    cards = []
    for label in sorted(labels, key=lambda one: (order[_role(one, request)], one)):
        sides = {}
        for side in ("before", "after"):
            images = next(
                (value for key, value in (grids.get(side) or {}).items() if int(key) == label), None
            )
            sides[side] = (
                None if images is None else {"address": grid_address(images), "small": is_small(images)}
            )
        cards.append({"label": named(label), "role": _role(label, request), "sides": sides})
    forgotten_cards = [card for card in cards if card["role"] == "forgotten"]
    return [
        {"kind": "asked", "cards": forgotten_cards},
        {"kind": "rest", "cards": cards[len(forgotten_cards) :]},
    ]


def _at(values: Any, path: Sequence[str]) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _gate(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "title": check_title(check),
            "value": _check_value(check, "value"),
            "bound": "none" if check.get("bound") is None else _check_value(check, "bound"),
            "passed": check.get("passed"),
            "reason": check.get("reason") or "",
        }
        for check in (result.get("gate") or {}).get("checks") or []
    ]


def _check_value(check: Mapping[str, Any], key: str) -> str:
    if check["name"] in NOT_REACHED and key == "value" and check.get(key) is None:
        return "not settled"
    if check["name"] == "settled" and key == "value":
        return f"step {check[key]}"
    is_share = any(word in str(check["name"]) for word in ("fraction", "accuracy", "share", "leakage"))
    return share(check.get(key)) if is_share else number(check.get(key))


def _classes(result: Mapping[str, Any], named: Namer) -> list[dict[str, Any]]:
    request = result.get("request") or {}
    sides = [result.get(side) or {} for side in ("before", "after")]
    before, after = (
        ((side.get("class_shares") or side.get("retain_accuracy") or {}).get("per_class") or {})
        | {
            label: share["value"]
            for label, share in ({} if side.get("class_shares") else forgotten_shares(side)).items()
        }
        for side in sides
    )
    rows = []
    for key in sorted({*map(str, before), *map(str, after)}, key=int):
        old, new = before.get(key), after.get(key)
        change = None if old is None or new is None else new - old
        rows.append(
            {
                "label": int(key),
                "name": named(key),
                "role": _role(int(key), request),
                "before": old,
                "after": new,
                "change": change,
            }
        )
    return rows


def _method(name: str | None) -> str:
    """The method as its line in the table says it; a name that the table does not have, as it is."""
    from pipeline.unlearning.methods.table import METHODS

    method = METHODS.get(name or "")
    return f"{method.title} ({name}): {method.meaning}" if method else name or NOT_MEASURED


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    keys = (
        "run_id",
        "seed",
        "world_size",
        "steps",
        "first_crossing_step",
        "settled_step",
        "best_step",
    )
    missing = result.get("missing_checks") or []
    spaces = result.get("features") or {}
    computed = result.get("precision") or {}
    return [
        ("method", _method(result.get("method"))),
        *((key.replace("_", " "), number(result.get(key))) for key in keys),
        ("ended by", ENDS.get(str(result.get("stopped")), NOT_MEASURED)),
        ("checks that failed", ", ".join(f"step {step}" for step in missing) or "none"),
        *(
            (f"features, {name}", f"{str(one['digest'])[:12]}, {one['weights']}")
            for name, one in spaces.items()
        ),
        *((f"computed in, {key}", str(value)) for key, value in computed.items()),
    ]
