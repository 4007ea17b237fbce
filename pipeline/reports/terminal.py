"""What the main job prints at its end."""

from collections.abc import Mapping
from typing import Any

from pipeline.evaluation.gate import likeness_warning
from pipeline.reports.evaluation_sections import battery_sentence


def summary(result: Mapping[str, Any], report_uri: str) -> str:
    """A before/after table, steps and seconds, the gate, the version and where the report lies: about a dozen
    lines."""
    before, after, timing, model = result["before"], result["after"], result["timing"], result["model"]

    def pair(name: str, *path: str) -> str:
        cells = []
        for block in (before, after):
            value: Any = block
            for key in path:
                value = None if value is None else value.get(key)
            cells.append("not measured" if value is None else f"{value:.3f}")
        return f"  {name:<34}{cells[0]:>13}{cells[1]:>13}"

    by_name = after["forget_fraction"] is None
    interval = after["membership" if by_name else "forget_fraction"]
    if by_name:
        first, *others = [
            pair("membership_auc", "membership", "auc"),
            pair("loss on the named samples", "membership", "loss_forget"),
            pair("loss on never-seen rows", "membership", "loss_heldout"),
        ]
    else:
        first, *others = [
            pair("forget_fraction", "forget_fraction", "value"),
            pair("drawn as the exchange class", "exchange_fraction", "value"),
            *(
                [
                    pair("  density of real ones around it", "exchange_density", "forgotten", "value"),
                    pair("  and around that label's own", "exchange_density", "own", "value"),
                ]
                if after.get("exchange_density")
                else []
            ),
        ]
    kept = [
        pair("retain_accuracy, mean", "retain_accuracy", "mean"),
        pair("retain_accuracy, worst class", "retain_accuracy", "min"),
    ]
    if shares := after.get("class_shares"):
        kept = [
            pair(f"share of class {label}", "class_shares", "per_class", label)
            for label in shares["per_class"]
        ]
        others = [f"  {'  chance':<34}{'':>13}{shares['chance']:>13.3f}"]
    lines = [
        f"\n  {'':<34}{'before':>13}{'after':>13}",
        first,
        (
            f"  {'  95 % interval, n':<34}{'':>13}{interval['low']:>8.3f} - {interval['high']:.3f},"
            f" {interval['n']}"
        ),
        *others,
        *kept,
        *(pair(f"fid, {space} features", "fid", space) for space in after["fid"] or ["judge"]),
        "",
        (
            f"  steps {result['steps']}{_ended(result)}, {_crossed(result)}; {timing['seconds_per_step']:.2f}"
            f" s a step on {result['world_size']} workers, {timing['total_seconds']:.0f} s in all"
        ),
    ]
    if by_name and not before["membership"]["memorised"]:
        lines.append(
            f"  the base model never memorised these samples (AUC {before['membership']['auc']:.3f} before,"
            " chance is 0.5): there was nothing to forget, and nothing is claimed"
        )
    if warning := likeness_warning(before, after):
        lines.append(f"  {warning}")
    failed = [check for check in result["gate"]["checks"] if not check["passed"]]
    lines.append(
        "  gate PASSED"
        if result["gate"]["passed"]
        else "  gate FAILED: " + "; ".join(_reason(check) for check in failed)
    )
    if battery := result.get("battery"):
        lines.append(f"  under attack: {battery_sentence(battery)}")
    lines += [
        f"  registered {model['name']} version {model['version']} @{model['alias']}",
        f"  report {report_uri}",
    ]
    return "\n".join(lines)


def _ended(result: Mapping[str, Any]) -> str:
    """What ended the run before it was settled, and the step whose weights it went back to."""
    why = {"guard": "the guard", "checks": "evaluate.max_checks"}.get(str(result.get("stopped")))
    kept = result.get("kept_step")
    said = [f"ended by {why}"] * bool(why) + [f"weights of step {kept}"] * (
        kept not in (None, result["steps"])
    )
    return f" ({', '.join(said)})" if said else ""


def _crossed(result: Mapping[str, Any]) -> str:
    first, settled = result["first_crossing_step"], result["settled_step"]
    if first is None:
        return "never below target"
    return f"first below target at {first}, " + (
        "not settled" if settled is None else f"settled at {settled}"
    )


def _reason(check: Mapping[str, Any]) -> str:
    value = "not reached" if check["value"] is None else f"{check['value']:.3f}"
    where = f" (class {check['class']})" if check.get("class") is not None else ""
    return f"{check['name']} {value}{where}" + (
        f", bound {check['bound']:g}" if check["bound"] is not None else ""
    )
