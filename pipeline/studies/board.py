"""board.html: every setting of a comparison beside the others, every run of it with a picture, and what
attacks bring back, on one page that needs nothing else."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.config import CompareConfig
from pipeline.evaluation.context import JUDGE
from pipeline.reports.html import environment
from pipeline.reports.png import grid_address
from pipeline.studies import behaviour
from pipeline.studies.attack_comparison import BASE as BEFORE
from pipeline.studies.attack_comparison import REFERENCE
from pipeline.studies.comparison import BASE, drawn_of, results_of, samples_uri
from pipeline.studies.grid import cells, label_of, model_uri_of, request_of

TEMPLATES = Path(__file__).with_name("templates")
Result = Mapping[str, Any]
# title of a column, what it says of one run, how many digits it is shown with
COLUMNS: tuple[tuple[str, Callable[[Result], float | None], int], ...] = (
    ("forgotten class", lambda r: r["forget_fraction"], 3),
    ("as the exchange", lambda r: r["exchange_fraction"], 2),
    ("near-copies", lambda r: r.get("replication"), 3),
    ("loss attack, AUC", lambda r: r.get("membership_auc"), 2),
    ("their label judged right", lambda r: r.get("label_accuracy"), 3),
    ("exchange fidelity", lambda r: _over(r["exchange_density"], r["exchange_density_own"]), 2),
    ("retained, mean", lambda r: r["retain_mean"], 3),
    ("worst class", lambda r: r["retain_min"], 2),
    ("neighbours", lambda r: r.get("retain_neighbours"), 2),
    ("Frechet, judge", lambda r: r["fid"], 1),
    ("kernel distance, judge", lambda r: _in_judge(r, "kid", "value"), 1),
    ("precision, judge", lambda r: _in_judge(r, "precision_recall", "precision", "value"), 2),
    ("recall, judge", lambda r: _in_judge(r, "precision_recall", "recall", "value"), 2),
    ("attacks: excess", lambda r: r.get("excess"), 2),
    ("behaviour, forgotten", lambda r: (r.get("behaviour") or {}).get("forgotten"), 2),
    ("behaviour, retained", lambda r: (r.get("behaviour") or {}).get("retained"), 2),
    ("settled at step", lambda r: r["settled_step"], 0),
    ("steps", lambda r: r["steps"], 0),
    ("CPU seconds", lambda r: r["step_cpu_seconds"] + r.get("prepare_cpu_seconds", 0.0), 1),
)


def write(
    config: CompareConfig, results: Sequence[Result], class_names: Sequence[str]
) -> tuple[str, list[str]]:
    """Make the board of the runs there are; where it lies, and what is missing for it."""
    results, missing = with_excess(config, results)
    results, yardsticks, unmeasured = with_behaviour(config, results)
    missing += unmeasured
    uri = f"{samples_uri(config)}.html"
    pictures = {
        result["key"]: _picture(drawn_of(config, result, result["key"]), label_of(result))
        for result in results
        if "failed" not in result
    }
    bases = {
        request_of(result): (
            _picture(drawn_of(config, result, BASE), label_of(result)),
            yardsticks.get(request_of(result), ""),
        )
        for result in results
        if "failed" not in result
    }
    storage.write_text(uri, render(config, results, class_names, pictures, bases, missing))
    return uri, missing


def render(
    config: CompareConfig,
    results: Sequence[Result],
    class_names: Sequence[str],
    pictures: Mapping[str, str],
    bases: Mapping[tuple[Any, ...], tuple[str, str]],
    missing: Sequence[str] = (),
) -> str:
    """The page; `pictures` are addresses by key of a run, `bases` one by request with a text. Every text from
    outside is escaped."""

    def title(request: Sequence[Any]) -> str:
        return " to ".join(one if isinstance(one, str) else class_names[one] for one in request)

    runs = [
        {
            "row": result["row"],
            "request": title(request_of(result)),
            "seed": result["seed"],
            "failed": result.get("failed"),
            "cells": [] if "failed" in result else _cells([result]),
            "picture": pictures.get(result["key"]),
        }
        for result in results
    ]
    # a column that nothing was measured for is none
    measured = [
        index
        for index, _ in enumerate(COLUMNS)
        if any(run["cells"][index][1] for run in runs if run["cells"])
    ]
    requests = len(config.pairs) + len(config.requests)
    grid = len(config.rows) * requests * len(config.seeds)
    budget = f"{config.cpu_seconds:g} CPU seconds each" if config.cpu_seconds else "each by its own rule"
    return (
        environment(TEMPLATES)
        .get_template("board.html")
        .render(
            name=config.name,
            lead=f"{len(results)} of {grid} runs: {len(config.rows)} settings, {requests} requests,"
            f" {len(config.seeds)} seeds, {budget}.",
            titles=[COLUMNS[index][0] for index in measured],
            rows=[_only(row, measured) for row in _rows(config, results)],
            runs=[_only(run, measured) for run in runs],
            requests=list(dict.fromkeys(run["request"] for run in runs)),
            seeds=list(dict.fromkeys(run["seed"] for run in runs)),
            bases=[(title(request), address, text) for request, (address, text) in bases.items()],
            missing=missing,
        )
    )


def _only(line: Mapping[str, Any], columns: Sequence[int]) -> dict[str, Any]:
    return {**line, "cells": [line["cells"][index] for index in columns] if line["cells"] else []}


def _rows(config: CompareConfig, results: Sequence[Result]) -> list[dict[str, Any]]:
    """A line for each setting that has runs: medians over them."""
    lines = []
    for row in config.rows:
        own = [result for result in results if result["row"] == row]
        whole = [result for result in own if "failed" not in result]
        if own:
            settled = sum(result["settled_step"] is not None for result in whole)
            lines.append(
                {
                    "row": row,
                    "runs": len(own),
                    "settled": f"{settled} of {len(own)}",
                    "share": settled / len(own),
                    # of a setting, the distribution over its runs
                    "cells": _cells([{**one, "behaviour": one.get("behaviour_of_all")} for one in whole]),
                }
            )
    return lines


def _cells(results: Sequence[Result]) -> list[tuple[str, str]]:
    """For each column what is shown and what it is sorted by: the median of what was measured."""
    cells = []
    for _, value_of, digits in COLUMNS:
        values = [value for result in results if (value := value_of(result)) is not None]
        median = statistics.median(values) if values else None
        shown = "" if median is None else f"{median:.{digits}f}" if abs(median) < 1e4 else f"{median:.0e}"
        cells.append((shown, "" if median is None else repr(float(median))))
    return cells


def _in_judge(result: Result, metric: str, *path: str) -> float | None:
    """A figure in the judge's features; None where it was not measured."""
    value: Any = (result.get(metric) or {}).get(JUDGE)
    for key in path:
        value = (value or {}).get(key)
    return value


def _over(value: float | None, yardstick: float | None) -> float | None:
    return None if value is None or not yardstick else value / yardstick


def _picture(drawn: Mapping[int, np.ndarray], forgotten: int) -> str:
    """The images of the forgotten label, then the first of every other label."""
    others = [images[:1] for label, images in sorted(drawn.items()) if label != forgotten]
    return grid_address(np.concatenate([drawn[forgotten], *others]))


def with_behaviour(
    config: CompareConfig, results: Sequence[Result]
) -> tuple[list[Result], dict[tuple[Any, ...], str], list[str]]:
    """`results` with how far each run, and all of its setting and request together, behave from the retrained
    references; by request the same of the base, in words; and what is missing, as commands."""
    from pipeline.data.tombstones import open_lake

    cache, lines = storage.join(samples_uri(config), "losses"), list(results)
    yardsticks: dict[tuple[Any, ...], str] = {}
    missing: list[str] = []
    if not any(line.get("losses") for line in lines):
        return lines, yardsticks, missing
    lake = open_lake(config.storage, config.lake)
    bases = {cell.pair: model_uri_of(cell) for cell in cells(config) if cell.pair}
    for pair, base in bases.items():
        own = [line for line in lines if tuple(line["pair"]) == pair and line.get("losses")]
        uris = behaviour.reference_uris(base, pair[0])
        if own and len(uris) < 2:
            missing.append(
                f"{len(uris)} retrained references without class {pair[0]}, expected 2 or more:"
                f" jobs/pretrain.py --set 'without=[{pair[0]}]', with --set number=1 and so on"
            )
        if not own or len(uris) < 2:
            continue
        losses = [behaviour.losses_at(uri, lake, pair[0], cache) for uri in uris]
        of_base = behaviour.distances([{"losses": behaviour.losses_at(base, lake, pair[0], cache)}], losses)
        yardsticks[pair] = behaviour.said(of_base, losses)
        of_row = {
            row: behaviour.distances([line for line in own if line["row"] == row], losses)
            for row in config.rows
        }
        lines = [
            {
                **line,
                "behaviour": behaviour.distances([line], losses),
                "behaviour_of_all": of_row[line["row"]],
            }
            if line in own
            else line
            for line in lines
        ]
    return lines, yardsticks, missing


def with_excess(config: CompareConfig, results: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """`results` with `excess`: the share of the forgotten class that the worst attack brings back, less what
    the same attacks bring out of a model that never saw it (medians over what was attacked). And what is
    missing for it, as commands."""
    if config.attack_results is None:
        return list(results), []
    attacked = list(results_of(config.storage, config.attack_results).values())
    missing = []
    if not attacked:
        missing = [f"no attacks yet: jobs/attack_methods.py --set name={config.attack_results}"]
    worst: dict[tuple[str, tuple[int, ...]], list[float]] = {}
    for attempt in attacked:
        if "failed" not in attempt:
            shares = [
                attack["forget_fraction"]["value"]
                for name, attack in attempt["attack_suite"].items()
                if name != "none"
            ]
            worst.setdefault((attempt["row"], tuple(attempt["pair"])), []).append(max(shares))
    lines: list[Result] = []
    for result in results:
        pair = tuple(result["pair"])
        ours, theirs = worst.get((result["row"], pair)), worst.get((REFERENCE, pair))
        excess = statistics.median(ours) - statistics.median(theirs) if ours and theirs else None
        lines.append({**result, "excess": excess})
    if attacked:
        bare = sorted({pair for row, pair in worst if row != BEFORE and (REFERENCE, pair) not in worst})
        missing += [
            f"no retrained reference without class {pair[0]}: jobs/pretrain.py --set 'without=[{pair[0]}]',"
            " then the attacks again"
            for pair in bare
        ]
    return lines, missing
