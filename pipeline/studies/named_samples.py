"""What a comparison says of requests for single images: near-copies among the samples, the loss attack on the
images, and the others of their label."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.studies.resumable import markdown

Result = Mapping[str, Any]
BEFORE = "the model before"
# title of a column, what it says of one run, how it is shown; which of the runs is the worst
COLUMNS: tuple[tuple[str, str, str, Callable[[Sequence[float]], float]], ...] = (
    ("near-copies", "replication", ".3f", max),
    ("loss attack, AUC", "membership_auc", ".2f", max),
    ("loss on the images", "loss_named", ".3f", min),
    ("their label judged right", "label_accuracy", ".3f", min),
    ("distance to others of it", "distance_others", ".3f", max),
    ("all labels", "retain_mean", ".3f", min),
    ("worst", "retain_min", ".2f", min),
    ("Frechet, judge features", "fid", ".1f", max),
)
CURVE = ("step", "replication", "membership_auc", "loss/members", "retain_accuracy/mean")  # of every check
OF_BASE = "_before"  # ends the name of the base's own figure


def figures(
    before: Mapping[str, Any], after: Mapping[str, Any], checks: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Of a run's blocks before and after, as in result.json; `curve`: the figures `CURVE` of its
    checks."""
    result: dict[str, Any] = {}
    for side, end in ((after, ""), (before, OF_BASE)):
        copies, attack = side.get("replication") or {}, side.get("membership") or {}
        result |= {
            f"replication{end}": copies.get("value"),
            f"distance_others{end}": copies.get("distance_others"),
            f"label_accuracy{end}": (copies.get("label_accuracy") or {}).get("value"),
            f"membership_auc{end}": attack.get("auc"),
            f"loss_named{end}": attack.get("loss_forget"),
            f"fid{end}": side["fid"]["judge"],
        }
    result["curve"] = [[check.get(key) for key in CURVE] for check in checks]
    return result


def table(results: Sequence[Result], rows: Sequence[str]) -> str:
    """Markdown: the base, then a line for each row of the grid with medians over runs and, in brackets, the
    worst run."""
    head = ["settings", "runs", *(title for title, *_ in COLUMNS), "steps", "CPU s"]
    whole = [result for result in results if "failed" not in result]
    base = [{key: result.get(key + OF_BASE) for _, key, *_ in COLUMNS} for result in whole]
    lines = [[BEFORE, "", *(_cells(base)), "", ""]] if base else []
    for row in rows:
        all_runs = [result for result in results if result["row"] == row]
        runs = [result for result in all_runs if "failed" not in result]
        if runs:
            steps = statistics.median(run["steps"] for run in runs)
            seconds = statistics.median(run["step_cpu_seconds"] + run["prepare_cpu_seconds"] for run in runs)
            lines.append([row, str(len(all_runs)), *_cells(runs), f"{steps:g}", f"{seconds:.1f}"])
    return markdown(head, lines)


def _cells(runs: Sequence[Result]) -> list[str]:
    cells = []
    for _, key, shown, worst in COLUMNS:
        values = [run[key] for run in runs if run[key] is not None]
        cells.append(f"{statistics.median(values):{shown}} ({worst(values):{shown}})" if values else "")
    return cells
