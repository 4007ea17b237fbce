"""What the main job prints at its end."""

from collections.abc import Mapping
from typing import Any

from pipeline.evaluation.context import AFTER, BEFORE
from pipeline.evaluation.gate import exchange_fidelity_warning
from pipeline.reports.answers import answer_rows
from pipeline.reports.evaluation_sections import attack_suite_sentence
from pipeline.reports.evaluation_table import groups
from pipeline.reports.text import stand_in_sentence


def summary(result: Mapping[str, Any], report_uri: str) -> str:
    """A before/after table, steps and seconds, the gate, the version and where the report lies: about a dozen
    lines."""
    before, after, timing, model = result["before"], result["after"], result["timing"], result["model"]
    lines = [
        *_table(before, after),
        "",
        (
            f"  steps {result['steps']}{_ended(result)}, {_crossed(result)}; {timing['seconds_per_step']:.2f}"
            f" s a step on {result['world_size']} workers, {timing['total_seconds']:.0f} s in all"
        ),
    ]
    if after["forget_fraction"] is None and not before["membership"]["memorised"]:
        lines.append(
            f"  the base model never memorised these samples (AUC {before['membership']['auc']:.3f} before,"
            " chance is 0.5): there was nothing to forget, and nothing is claimed"
        )
    if warning := exchange_fidelity_warning(before, after):
        lines.append(f"  {warning}")
    lines += [f"  {sentence[0].lower()}{sentence[1:-1]}" for sentence in stand_in_sentence(result)]
    answers = answer_rows(result)
    if len(answers) > 1 or result["request"].get("forgotten_earlier"):
        lines += [_request_line(row) for row in answers]
    reasons = "; ".join(refusals(result))
    lines.append("  gate PASSED" if result["gate"]["passed"] else f"  gate FAILED: {reasons}")
    if attack_suite := result.get("attack_suite"):
        lines.append(f"  under attack: {attack_suite_sentence(attack_suite)}")
    lines += [
        f"  registered {model['name']} version {model['version']} @{model['alias']}",
        f"  report {report_uri}",
    ]
    return "\n".join(lines)


def _request_line(row: Mapping[str, Any]) -> str:
    if not row["scope"]:
        return f"  request {row['id']}: its rows were purged, it is not measured again"
    closed = "closed" if row["closed"] else "stays open"
    worst = f" ({row['worst']})" if row["worst"] else ""
    return f"  request {row['id']}, {row['role']}: {row['scope']}, {row['figure']}{worst}; {closed}"


def _table(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What decides, with its interval, then every other figure in the order and the words of the metrics'
    table; the classes' shares of a model without labels, one by one."""
    decisive = "membership" if after["forget_fraction"] is None else "forget_fraction"
    interval = after[decisive]
    bounds = f"{interval['low']:.3f} - {interval['high']:.3f}, {interval['n']}"
    lines, below_first = ["\n" + _line("", "before", "after")], [_line("  95 % interval, n", "", bounds)]
    for group in sorted(groups({BEFORE: before, AFTER: after}), key=lambda group: group.name != decisive):
        for title, figures in group.lines(group.metric.title):
            cells = [_cell(figures.get(side)) for side in (BEFORE, AFTER)] if figures else []
            lines.append(_line(title, *cells))
            if figures:
                lines, below_first = [*lines, *below_first], []
    if shares := after.get("class_shares"):
        lines += [
            _line(
                f"  share of class {label}", _cell(before["class_shares"]["per_class"][label]), _cell(share)
            )
            for label, share in shares["per_class"].items()
        ]
    return lines


def _line(title: str, *cells: str) -> str:
    return f"  {title:<46}{''.join(f'{cell:>13}' for cell in cells)}".rstrip()


def _cell(figure: Any) -> str:
    value = figure["value"] if isinstance(figure, Mapping) else figure
    if value is None:
        return "not measured"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _ended(result: Mapping[str, Any]) -> str:
    """What ended the run before it was settled, and the step whose weights it went back to."""
    why = {"retention_floor": "the retention floor", "checks": "evaluate.max_checks"}.get(
        str(result.get("stopped"))
    )
    best_step = result.get("best_step")
    parts = [f"ended by {why}"] * bool(why) + [f"weights of step {best_step}"] * (
        best_step not in (None, result["steps"])
    )
    return f" ({', '.join(parts)})" if parts else ""


def _crossed(result: Mapping[str, Any]) -> str:
    first, settled = result["first_crossing_step"], result["settled_step"]
    if first is None:
        return "never below target"
    return f"first below target at {first}, " + (
        "not settled" if settled is None else f"settled at {settled}"
    )


def refusals(result: Mapping[str, Any]) -> list[str]:
    """Why the gate refuses a run, a line for each bound that was missed; empty where it passed."""
    return [_reason(check) for check in result["gate"]["checks"] if not check["passed"]]


def _reason(check: Mapping[str, Any]) -> str:
    value = "not reached" if check["value"] is None else f"{check['value']:.3f}"
    where = f" (class {check['class']})" if check.get("class") is not None else ""
    return (
        f"{check['name']} {value}{where}"
        + (f", bound {check['bound']:g}" if check["bound"] is not None else "")
        + (f": {check['reason']}" if check.get("reason") else "")
    )
