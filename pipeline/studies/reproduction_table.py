"""Every row of a published table on every seed, resumable, and the table beside the published one."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.config import ReproduceConfig
from pipeline.config.reproduce import ReproducedRow
from pipeline.data.tombstones import open_lake
from pipeline.errors import InputError
from pipeline.studies.resumable import markdown, results
from pipeline.weights import model_folder

if TYPE_CHECKING:
    from pipeline.data.batch import Batch
    from pipeline.studies.reproduction import Sides

BASE = "before"  # the row of the model as it was


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a reproduction reads: the weights, checked, and the digest of the lake."""

    model: model_folder.Stored
    judge: model_folder.Stored
    lake_digest: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row on one seed."""

    config: ReproduceConfig
    name: str
    seed: int
    digests: tuple[str, ...]

    @property
    def row(self) -> ReproducedRow:
        return self.config.rows[self.name]

    @property
    def key(self) -> str:
        loose = {
            "storage",
            "seed",
            "seeds",
            "rows",
            "processes",
            "name",
            "lake",
            "model",
            "judge",
            "timing_repeats",
        }
        row = self.row.model_dump(mode="json", exclude={"reading", "published", "published_count"})
        return storage.digest_of(
            [self.config.model_dump(mode="json", exclude=loose), row, self.seed, *self.digests]
        )


def check(config: ReproduceConfig) -> Inputs:
    """Raise `InputError` for anything that would stop the job later."""
    from pipeline.studies.reproduction import load
    from pipeline.unlearning.methods.table import METHODS

    for name, row in config.rows.items():
        if row.method not in METHODS:
            raise InputError(f"rows.{name}.method: got {row.method!r}, expected one of {', '.join(METHODS)}")
        if METHODS[row.method].own:
            raise InputError(
                f"rows.{name}.method: got {row.method}, which is none of the methods of the published tables;"
                f" expected one of {', '.join(key for key, line in METHODS.items() if not line.own)}"
            )
    lake = open_lake(config.storage, config.lake)
    labels = [item.label for item in lake.manifest.classes]
    if config.forget not in labels:
        raise InputError(
            f"forget: got class {config.forget}, expected one of the lake's {labels[0]} to {labels[-1]}"
        )
    model_uri = model_folder.model_uri(config.storage, config.model.size, config.lake)
    model = model_folder.read(_given(config.model.weights) or model_uri, "model.weights")
    judge = model_folder.read(
        _given(config.judge.weights) or model_folder.judge_uri(config.storage, config.lake), "judge.weights"
    )
    load(model, judge)
    return Inputs(model=model, judge=judge, lake_digest=lake.digest)


def runs(config: ReproduceConfig, inputs: Inputs) -> Iterator[dict[str, Any]]:
    """Every result, those of an earlier run first."""
    digests = (inputs.model.digest, inputs.judge.digest, inputs.lake_digest)
    cells = [
        Cell(config=config, name=name, seed=seed, digests=digests)
        for seed in config.seeds
        for name in config.rows
    ]
    return results(
        cells,
        run_cell,
        storage.join(config.storage, "reproductions", f"{config.name}.jsonl"),
        config.processes,
    )


def run_cell(cell: Cell) -> dict[str, Any]:
    """One run in this process, on one thread."""
    import torch

    from pipeline.studies.reproduction import begin, load, real_moments, run_trial

    torch.set_num_threads(1)
    inputs, sides, rows = _inputs(cell.config)
    model, judge = load(inputs.model, inputs.judge)
    trial = begin(cell.config, cell.row, model, judge, cell.seed)
    outcome = run_trial(trial, sides, real_moments(cell.config, judge, rows), cell.seed)
    return {"key": cell.key, "row": cell.name, "seed": cell.seed, **outcome}


def costs(config: ReproduceConfig, inputs: Inputs) -> dict[str, list[float]]:
    """Paired CPU seconds of a step of every row."""
    import torch

    from pipeline.studies.reproduction import begin, load, step_costs

    torch.set_num_threads(1)
    _, sides, _ = _inputs(config)
    return step_costs(
        config,
        {name: begin(config, row, *load(inputs.model, inputs.judge), 0) for name, row in config.rows.items()},
        sides,
    )


def base(config: ReproduceConfig, inputs: Inputs) -> dict[str, Any]:
    """The model as it was: Frechet distance and shares."""
    from pipeline.studies.reproduction import begin, load, measured, real_moments

    _, _, rows = _inputs(config)
    model, judge = load(inputs.model, inputs.judge)
    trial = begin(config, next(iter(config.rows.values())), model, judge, 0)
    return measured(trial, real_moments(config, judge, rows), 0)


def _inputs(config: ReproduceConfig) -> tuple[Inputs, "Sides", "Batch"]:
    from pipeline.studies.reproduction import read_sides

    return check(config), *read_sides(config.storage, config.lake, config.forget)


def table(
    config: ReproduceConfig,
    outcomes: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, Sequence[float]],
    before: Mapping[str, Any],
) -> str:
    """Markdown, a line a row: published figures beside the measured ones; means and deviations over seeds."""
    surgery = next(
        (name for name, row in config.rows.items() if row.method == "surgery" and not row.uniformity_weight),
        next(iter(config.rows)),
    )
    head = [
        "row",
        "what it is",
        "steps, published",
        "first below",
        "last above",
        "settled",
        "ms a step",
        "/ S",
        "/ S, published",
    ]
    head += ["Frechet", "Frechet, published", "share at the end", "drift of the others"]
    lines: list[list[str]] = []
    own = before["shares"][config.forget]
    lines.append([BASE, "the model as it was", *[""] * 7, f"{before['frechet']:.1f}", "", f"{own:.3f}", ""])
    slowness = config.rows[surgery].published
    for name, row in config.rows.items():
        mine, published = [r for r in outcomes if r["row"] == name], row.published
        ratio = [a / b for a, b in zip(seconds[name], seconds[surgery])]
        drifts = [_drift(before["shares"], r["shares"], config.forget) for r in mine]
        cells = [
            name,
            row.reading,
            (
                f"{published.steps:g} ±"
                f" {published.steps_spread:.2g}{' (last above)' if row.published_count == 'last' else ''}"
                if published
                else ""
            ),
            _steps([r["first_below"] for r in mine]),
            _steps([r["last_above"] for r in mine]),
            _settled([r["settled"] for r in mine]),
            f"{1000 * statistics.median(seconds[name]):.1f}",
            f"{statistics.median(ratio):.2f}",
            f"{published.seconds_per_step / slowness.seconds_per_step:.2f}" if published and slowness else "",
            _spread([r["frechet"] for r in mine]),
            f"{published.frechet:g}" if published else "",
            f"{statistics.median(r['shares'][config.forget] for r in mine):.3f}",
            f"{statistics.median(drifts):.3f} ({max(drifts):.3f})",
        ]
        lines.append(cells)
    return markdown(head, lines)


def _given(weights: str | None) -> str | None:
    return storage.absolute(weights) if weights else None


def _steps(values: Sequence[int | None]) -> str:
    reached = [value for value in values if value is not None]
    never = f", {len(values) - len(reached)} of {len(values)} never" if len(reached) < len(values) else ""
    return f"{_spread(reached)}{never}" if reached else f"never ({len(values)})"


def _spread(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.3g} ± {statistics.pstdev(values):.2g}"


def _settled(values: Sequence[int | None]) -> str:
    reached = [value for value in values if value is not None]
    return (
        f"{statistics.median(reached):g} ({len(reached)} of {len(values)})"
        if reached
        else f"never ({len(values)})"
    )


def _drift(before: Sequence[float], after: Sequence[float], forget: int) -> float:
    retained = [label for label in range(len(before)) if label != forget]
    return max(abs(after[label] - before[label] / (1 - before[forget])) for label in retained)
