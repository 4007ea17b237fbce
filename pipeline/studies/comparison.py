"""Many settings of the main job side by side: every row of a grid on every pair of classes and seed, in plain processes.

The same partition, loop and measures as the main job, without Ray, MLflow or registry. Results are appended as they come,
so an interrupted comparison goes on.
"""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline import config as configuration
from pipeline import storage
from pipeline.config import CompareConfig, UnlearnConfig
from pipeline.studies.resumable import results

if TYPE_CHECKING:
    from pipeline.data.partition import Partition
    from pipeline.flow.checking import Prepared
    from pipeline.training.loop import Inputs


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run: a row of the grid, a pair forgotten -> exchange, a seed."""

    row: str
    pair: tuple[int, int]
    config: UnlearnConfig

    @property
    def key(self) -> str:
        return storage.digest_of([self.row, self.config.model_dump(mode="json", exclude={"storage"})])


def cells(config: CompareConfig) -> list[Cell]:
    """Every run of the comparison; raises `InputError` for a setting that no job knows."""
    made = []
    for seed in config.seeds:
        for forgotten, exchange in config.pairs:
            for row, settings in config.rows.items():
                values: dict[str, Any] = {**config.unlearn, "storage": config.storage, "seed": seed, "lake": config.lake}
                values["request"] = {**values.get("request", {}), "classes": [forgotten], "exchange": {forgotten: exchange}}
                values = configuration.apply_overrides(values, [f"{key}={json.dumps(value)}" for key, value in settings.items()])
                made.append(Cell(row=row, pair=(forgotten, exchange), config=configuration.parse(UnlearnConfig, values)))
    return made


def compare(config: CompareConfig, results_uri: str) -> Iterator[dict[str, Any]]:
    """Run what `results_uri` (JSON lines) does not hold yet; yields every result, old ones first."""
    return results(cells(config), run_cell, results_uri, config.processes)


def assembled(config: UnlearnConfig) -> "tuple[Prepared, Partition, Inputs]":
    """All that a run of the main job needs, in this process and on one thread."""
    import torch

    from pipeline.data.partition_ray import build_partition
    from pipeline.data.stream_local import retain_stream
    from pipeline.flow import checking
    from pipeline.training.assemble import assemble
    from pipeline.unlearning.collectives import Collectives

    torch.set_num_threads(1)
    prepared = checking.check(config)
    partition = build_partition(prepared.config, prepared.lake, prepared.subject["neighbours"])
    inputs = assemble(
        prepared.config,
        partition,
        model_uri=prepared.base.uri,
        judge_uri=prepared.judge.uri,
        described=prepared.sources["subject"],
        heldout=lambda labels: prepared.lake.read(labels, "heldout"),
        retain=lambda start: retain_stream(partition, 0, 1, start),
        collectives=Collectives(),
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )
    return prepared, partition, inputs


def run_cell(cell: Cell) -> dict[str, Any]:
    """One run in this process, on one thread; a run that breaks down numerically is a result too."""
    from pipeline.flow import results
    from pipeline.training.loop import unlearn
    from pipeline.unlearning.collectives import NonFiniteError

    prepared, partition, inputs = assembled(cell.config)
    known_uri, known = results.measured_before(prepared, partition.digest)
    first: list[dict[str, Any]] = []
    inputs = replace(inputs, before=known, record=lambda r: first.append(r) if r["kind"] == "evaluation" and r["step"] == 0 else None)
    found: dict[str, Any] = {"key": cell.key, "row": cell.row, "pair": list(cell.pair), "seed": cell.config.seed}
    try:
        outcome = unlearn(inputs)
    except NonFiniteError as error:
        return {**found, "failed": str(error)}
    if known is None:  # the other rows of this request and seed start from the same measures
        storage.write_json(known_uri, {"result": outcome.before, "record": first[0]})
    after = outcome.after
    return {
        **found,
        "steps": outcome.steps,
        "first_crossing_step": outcome.first_crossing_step,
        "settled_step": outcome.settled_step,
        "forget_fraction": (after["forget_fraction"] or {}).get("value"),
        "exchange_fraction": (after["exchange_fraction"] or {}).get("value"),
        "retain_mean": after["retain_accuracy"]["mean"],
        "retain_min": after["retain_accuracy"]["min"],
        "retain_mean_before": outcome.before["retain_accuracy"]["mean"],
        "retain_min_before": outcome.before["retain_accuracy"]["min"],
        "fid": after["fid"]["judge"],
        "step_cpu_seconds": outcome.timing["step_cpu_seconds"],
    }


def table(results: Sequence[Mapping[str, Any]], rows: Sequence[str]) -> str:
    """Markdown: a line for each row of the grid with medians over runs, the worst retention and how many settled."""
    head = [
        "settings",
        "runs",
        "first crossing",
        "settled (of runs)",
        "forget",
        "as exchange",
        "retain mean (worst run)",
        "retain min (worst run)",
        "against the base, mean / min (worst run)",
        "Frechet, judge features",
        "CPU s a step",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        all_runs = [r for r in results if r["row"] == row]
        runs = [r for r in all_runs if "failed" not in r]
        if not runs:
            continue
        settled = [r["settled_step"] for r in runs if r["settled_step"] is not None]
        crossed = [r["first_crossing_step"] for r in runs if r["first_crossing_step"] is not None]
        means, minima = [r["retain_mean"] for r in runs], [r["retain_min"] for r in runs]
        exchange = [r["exchange_fraction"] for r in runs if r["exchange_fraction"] is not None]
        cells_ = [
            row,
            str(len(all_runs)),
            f"{statistics.median(crossed):g} ({len(crossed)})" if crossed else "never",
            f"{statistics.median(settled):g} ({len(settled)})" if settled else "never",
            f"{statistics.median(r['forget_fraction'] for r in runs):.3f}",
            f"{statistics.median(exchange):.2f}" if exchange else "",
            f"{statistics.median(means):.3f} ({min(means):.3f})",
            f"{statistics.median(minima):.2f} ({min(minima):.2f})",
            f"{_change(runs, 'retain_mean')} / {_change(runs, 'retain_min')}",
            f"{statistics.median(r['fid'] for r in runs):.3g}",
            f"{statistics.median(r['step_cpu_seconds'] / r['steps'] for r in runs):.3f}",
        ]
        lines.append("| " + " | ".join(cells_) + " |")
    return "\n".join(lines)


def _change(runs: Sequence[Mapping[str, Any]], name: str) -> str:
    """Median and worst of after less before, of runs on the same noise."""
    changes = [r[name] - r[f"{name}_before"] for r in runs]
    return f"{statistics.median(changes):+.3f} ({min(changes):+.3f})"
