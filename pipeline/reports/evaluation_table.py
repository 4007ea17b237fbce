"""Results of metrics by title and side, for every report, and the table of an evaluation as the terminal
shows it: shares with n and interval."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.attacks.suite import retained_mean
from pipeline.evaluation.context import AFTER, BEFORE, REFERENCE
from pipeline.evaluation.metrics.table import METRICS, RENAMED, Metric

SIDES = (BEFORE, AFTER, REFERENCE)
Line = tuple[str, str, str, str]  # title, then a cell for each of SIDES


@dataclass(frozen=True, kw_only=True)
class Group:
    """What a metric found: `rows` of (title, figure by side), empty titles for its main figure."""

    name: str
    metric: Metric
    rows: list[tuple[str, dict[str, Any]]]

    def lines(self, title: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """`rows` as they are read: parts indented below `title`, which stands alone where it has no figure
        of its own."""
        if self.rows and self.rows[0][0]:
            yield title, {}
        for words, figures in self.rows:
            yield (f"  {words}" if words else title), figures


def groups(sides: Mapping[str, Mapping[str, Any] | None]) -> list[Group]:
    """A group for each metric that some side of `sides` ({side: {metric: result}}) has, in the order of the
    table; no rows where it does not apply."""
    sections: list[Group] = []
    names = {RENAMED.get(name, name) for results in sides.values() for name in results or {}}
    for name, metric in METRICS.items():
        figures = {
            side: metric.rows(result)
            for side in (AFTER, BEFORE, REFERENCE)
            if (result := (sides.get(side) or {}).get(name)) is not None
        }
        titles = dict.fromkeys(title for of_side in figures.values() for title in of_side)
        rows = [(title, {side: of_side.get(title) for side, of_side in figures.items()}) for title in titles]
        if name in names:
            sections.append(Group(name=name, metric=metric, rows=rows))
    return sections


def table(result: Mapping[str, Any]) -> str:
    """Everything in `result` (what `evaluate` returns) but the figures of single classes and timesteps,
    which are in the JSON."""
    lines: list[Line] = []
    for group in groups({side: result[side] for side in SIDES}):
        title = f"{group.metric.title} ({group.name})"
        if not group.rows:
            lines.append((title, "", "does not apply", ""))
        for text, figures in group.lines(title):
            cells = {side: cell(figures[side]) if side in figures else "" for side in SIDES}
            lines.append((text, cells[BEFORE], cells[AFTER], cells[REFERENCE]))
    if attack_suite := result["attack_suite"]:
        lines.append(("", "", "", ""))
        lines.append(
            (f"attacks (bound {attack_suite['bound']:g})", "state", "forget fraction; other labels right", "")
        )
        for line in attack_suite["attacks"]:
            here, reference = attack_figures(line)
            mean = retained_mean(line)
            outcome = line["error"] or (here if mean is None else f"{here}; {cell(mean)}")
            lines.append((f"  {line['name']}", line["state"], outcome, reference))
    head = (
        "",
        "before",
        "after",
        f"never saw it: {result['reference']['name']}" if result["reference"] else "",
    )
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    return "\n".join(
        "  " + "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *lines]
    )


def attack_figures(line: Mapping[str, Any]) -> tuple[str, str]:
    """What came of an attack here, and of the same on a model that never saw the class ("" where it was not
    tried): a share, the steps until it was learnt again, or a loss."""
    if "relearned" in line:
        return _steps(line["relearned"]), _steps(line["relearned_in_reference"])
    if "inversion" in line:
        return _loss(line["inversion"]), _loss(line["inversion_of_reference"])
    reference = line.get("reference")
    return cell(line["forget_fraction"]), cell(reference) if reference else ""


def _steps(relearned: Mapping[str, Any] | None) -> str:
    if not relearned:
        return ""
    steps, budget = relearned["steps"], relearned["budget"]
    return f"not within {budget} steps" if steps is None else f"{steps} steps, lr {relearned['lr']:g}"


def _loss(inversion: Mapping[str, Any] | None) -> str:
    if not inversion:
        return ""
    return f"loss {inversion['loss']:.4g} [{inversion['low']:.4g}, {inversion['high']:.4g}]"


def cell(value: Any) -> str:
    """A figure as text: a share with its interval and n, a number, or that it was not measured."""
    if value is None:
        return "not measured"
    if isinstance(value, Mapping):
        text = cell(value["value"])
        if value.get("low") is not None:
            text += f" [{value['low']:.4g}, {value['high']:.4g}]"
        for key in ("n", "blocks", "class"):
            text += f" {key} {value[key]}" if value.get(key) is not None else ""
        return text
    return f"{value:.4g}" if isinstance(value, float) else str(value)
