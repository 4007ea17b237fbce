"""An evaluation as the terminal shows it: a line for each figure, before and after, shares with n and interval."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

HIDDEN = ("per_class", "per_label", "curve", "per_row")
Line = tuple[str, str, str]
Show = Callable[[Any], str]


def table(found: Mapping[str, Any]) -> str:
    """Everything in `found` (what `evaluate` returns) but the figures of single classes, which are in the JSON."""
    lines: list[Line] = []
    for name, value in (found["measures"] or {}).items():
        lines += measure_lines(name, value)
    if found["battery"]:
        lines.append(("", "", ""))
        lines += _battery(found["battery"])
    if found["gold"]:
        lines.append(("", "", ""))
        lines += _gold(found["gold"])
    head = ("", "before", "after")
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(3)]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in [head, *lines]
    )


def cell(value: Any) -> str:
    """A figure as text: a share with its interval and n, a number, or that it was not measured."""
    if value is None:
        return "not measured"
    if isinstance(value, Mapping):
        text = f"{value['value']:.4g}"
        if value.get("low") is not None:
            text += f" [{value['low']:.4g}, {value['high']:.4g}]"
        for key in ("n", "blocks", "class"):
            text += f" {'class' if key == 'class' else key} {value[key]}" if value.get(key) is not None else ""
        return text
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measure_lines(name: str, value: Any, show: Show = cell) -> Iterator[Line]:
    """Title, before and after of every figure of one measure; `show` makes text of a figure."""
    if value is None:
        yield name, "", "does not apply"
    elif name == "loss_by_timestep":
        yield from _timesteps(name, value)
    elif name == "relearn_steps":
        for variant in ("forgotten_label", "never_trained_label"):
            steps = value[variant]["steps"]
            yield f"{name}, {variant.replace('_', ' ')}", "", f"more than {value['budget']}" if steps is None else str(steps)
    elif name == "membership_auc":
        for key in ("auc", "tpr_at_1_fpr", "loss_forget", "loss_heldout"):
            yield f"{name}, {key}", _attack(value.get("before"), key, show), _attack(value.get("after"), key, show)
    elif "after" in value:
        rows = {path: [None, leaf] for path, leaf in _leaves(value["after"])}
        for path, leaf in _leaves(value.get("before") or {}):
            rows.setdefault(path, [None, None])[0] = leaf
        for path, (before, after) in rows.items():
            yield ", ".join([name, *path]), "" if "before" not in value else show(before), show(after)
    else:
        yield from ((", ".join([name, *path]), "", show(leaf)) for path, leaf in _leaves(value))


def _attack(side: Mapping[str, Any] | None, key: str, show: Show) -> str:
    if side is None:
        return ""
    return show({"value": side["auc"], **{k: side[k] for k in ("low", "high", "n")}} if key == "auc" else side[key])


def _timesteps(name: str, value: Mapping[str, Any]) -> Iterator[Line]:
    before, after = value.get("before", {}), value["after"]
    for group in (group for group in after if group != "bins"):
        sides = [side.get(group) for side in (before, after)]
        first, second = ("" if side is None else f"{side['overall']:.4g} n {side['n']}" for side in sides)
        yield f"{name}, {group.replace('_', ' ')}", first, second
        for index, (start, end) in enumerate(after["bins"]):
            first, second = ("" if side is None else f"{side['mean'][index]:.4g}" for side in sides)
            yield f"    t {start} to {end - 1}", first, second


def _battery(battery: Mapping[str, Any]) -> Iterator[Line]:
    yield f"battery (bound {battery['bound']:g})", "verdict", "forget fraction; other labels right"
    for line in battery["attacks"]:
        kept = line["retain_accuracy"]
        said = line["error"] or f"{cell(line['forget_fraction'])}; {cell(kept['mean']['value'])} (worst {cell(kept['min']['value'])})"
        yield f"  {line['name']}", line["verdict"], said


def _gold(gold: Mapping[str, Any]) -> Iterator[Line]:
    yield f"gold reference {gold['name']}", "", ""
    yield "  its own forget_fraction", "", cell(gold["forget_fraction"])
    yield "  its own retain_accuracy", "", cell(gold["retain_accuracy"]["mean"])
    lines: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...] = (
        ("judged like it", lambda side: cell({key: side["agreement"][key] for key in ("value", "low", "high", "n")})),
        ("frechet distance to it", lambda side: cell(side["frechet"]["judge"])),
        ("paired drift from it", lambda side: cell(side["paired_drift"]["judge"]["mean"])),
    )
    for title, get in lines:
        yield f"  {title}", get(gold["before"]) if "before" in gold else "", get(gold["after"])


def _leaves(value: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Figures by path: a mapping with a `value` is one figure, and what else it holds comes after it."""
    if "value" in value:
        yield (), {key: inner for key, inner in value.items() if not isinstance(inner, Mapping)}
    for key, inner in value.items():
        if key in HIDDEN or (key in ("value", "n", "low", "high", "class", "blocks", "cfg_scale") and "value" in value):
            continue
        if isinstance(inner, Mapping):
            yield from (((str(key), *path), leaf) for path, leaf in _leaves(inner))
        else:
            yield (str(key),), inner
