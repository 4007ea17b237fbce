"""An evaluation as the terminal shows it: a line for each figure, before and after and of the gold, shares
with n and interval."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.evaluation.context import AFTER, BEFORE, GOLD

HIDDEN = ("per_class", "per_label", "curve", "per_row")
SIDES = (BEFORE, AFTER, GOLD)
Line = tuple[str, str, str, str]  # title, then a cell for each of SIDES
Show = Callable[[Any], str]


def table(found: Mapping[str, Any]) -> str:
    """Everything in `found` (what `evaluate` returns) but the figures of single classes, which are in the
    JSON."""
    lines: list[Line] = []
    for name, value in (found["measures"] or {}).items():
        lines += measure_lines(name, value)
    if found["battery"]:
        lines.append(("", "", "", ""))
        lines += _battery(found["battery"])
    if found["gold"]:
        lines.append(("", "", "", ""))
        lines += _gold(found["gold"])
    head = ("", "before", "after", "never saw it" if found["gold"] else "")
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *lines]
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
            text += (
                f" {'class' if key == 'class' else key} {value[key]}" if value.get(key) is not None else ""
            )
        return text
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measure_lines(name: str, value: Any, show: Show = cell) -> Iterator[Line]:
    """For every figure of a measure its title and a cell for each of SIDES, empty where that is not there;
    `show` makes the text."""
    if value is None:
        yield name, "", "does not apply", ""
    elif name == "loss_by_timestep":
        yield from _timesteps(name, value)
    elif name == "relearn_steps":
        for variant in ("forgotten_label", "never_trained_label"):
            steps = value[variant]["steps"]
            yield (
                f"{name}, {variant.replace('_', ' ')}",
                "",
                f"more than {value['budget']}" if steps is None else str(steps),
                "",
            )
    elif name == "membership_auc":
        for key in ("auc", "tpr_at_1_fpr", "loss_forget", "loss_heldout"):
            yield _line(f"{name}, {key}", lambda side, key=key: _attack(value.get(side), key, show))  # type: ignore[misc]
    elif AFTER in value:
        figures = {side: dict(_leaves(value[side])) for side in SIDES if value.get(side)}
        for path in dict.fromkeys(path for side in (AFTER, BEFORE, GOLD) for path in figures.get(side, {})):
            yield _line(
                ", ".join([name, *path]),
                lambda side, path=path: show(figures[side].get(path)) if side in figures else "",
            )  # type: ignore[misc]
    else:
        yield from ((", ".join([name, *path]), "", show(leaf), "") for path, leaf in _leaves(value))


def _line(title: str, of: Callable[[str], str]) -> Line:
    return title, of(BEFORE), of(AFTER), of(GOLD)


def _attack(side: Mapping[str, Any] | None, key: str, show: Show) -> str:
    if side is None:
        return ""
    return show(
        {"value": side["auc"], **{k: side[k] for k in ("low", "high", "n")}} if key == "auc" else side[key]
    )


def _timesteps(name: str, value: Mapping[str, Any]) -> Iterator[Line]:
    for group in (group for group in value[AFTER] if group != "bins"):
        lines = {side: value[side][group] for side in SIDES if group in (value.get(side) or {})}

        def at(side: str, index: int | None = None, lines: Mapping[str, Any] = lines) -> str:
            if side not in lines:
                return ""
            return (
                f"{lines[side]['overall']:.4g} n {lines[side]['n']}"
                if index is None
                else f"{lines[side]['mean'][index]:.4g}"
            )

        yield _line(f"{name}, {group.replace('_', ' ')}", at)
        for index, (start, end) in enumerate(value[AFTER]["bins"]):
            yield _line(f"    t {start} to {end - 1}", lambda side, index=index: at(side, index))  # type: ignore[misc]


def _battery(battery: Mapping[str, Any]) -> Iterator[Line]:
    yield f"battery (bound {battery['bound']:g})", "verdict", "forget fraction; other labels right", ""
    for line in battery["attacks"]:
        kept = line["retain_accuracy"]
        said = (
            line["error"]
            or f"{cell(line['forget_fraction'])}; {cell(kept['mean']['value'])}"
            f" (worst {cell(kept['min']['value'])})"
        )
        yield f"  {line['name']}", line["verdict"], said, ""


def _gold(gold: Mapping[str, Any]) -> Iterator[Line]:
    own = gold["forget_fraction"]
    yield f"gold reference {gold['name']}", "", "", ""
    if own is not None:
        yield "  its own forget_fraction", "", "", cell(own)
    yield "  its own retain_accuracy", "", "", cell(gold["retain_accuracy"]["mean"])
    lines: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        (
            "judged like it",
            lambda side: cell({key: side["agreement"][key] for key in ("value", "low", "high", "n")}),
        )
    ]
    for space in gold[AFTER]["frechet"]:
        lines += [
            (f"frechet distance to it, {space}", lambda side, space=space: cell(side["frechet"][space])),  # type: ignore[misc]
            (
                f"paired drift from it, {space}",
                lambda side, space=space: cell(side["paired_drift"][space]["mean"]),
            ),  # type: ignore[misc]
        ]
    for title, get in lines:
        yield f"  {title}", get(gold[BEFORE]) if BEFORE in gold else "", get(gold[AFTER]), ""


def _leaves(value: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Figures by path: a mapping with a `value` is one figure, and what else it holds comes after it."""
    if "value" in value:
        yield (), {key: inner for key, inner in value.items() if not isinstance(inner, Mapping)}
    for key, inner in value.items():
        if key in HIDDEN or (
            key in ("value", "n", "low", "high", "class", "blocks", "cfg_scale") and "value" in value
        ):
            continue
        if isinstance(inner, Mapping):
            yield from (((str(key), *path), leaf) for path, leaf in _leaves(inner))
        else:
            yield (str(key),), inner
