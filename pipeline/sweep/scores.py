"""What a trial is judged by: objectives, the settled measure, who beats whom."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config import UnlearnConfig
from pipeline.errors import InputError

# a run's outcome as plain data, or what stands in for it while it runs (`so_far`)
Outcome = Mapping[str, Any]
Row = Mapping[str, Any]  # a trial in the sweep's table
Direction = Literal["minimize", "maximize"]
Missing = Callable[[UnlearnConfig], str | None]
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"


@dataclass(frozen=True, kw_only=True)
class Objective:
    """`of` reads it from an outcome; `missing` says why no trial of a configuration would
    report it, if so."""

    title: str
    direction: Direction
    of: Callable[[Outcome, UnlearnConfig], float | None]
    missing: Missing = lambda config: None
    percent: bool = False


def _after(*path: str) -> Callable[[Outcome, UnlearnConfig], float | None]:
    def read(outcome: Outcome, config: UnlearnConfig) -> float | None:
        value: Any = outcome["after"]
        for key in path:
            value = None if value is None else value.get(key)
        return value

    return read


def _settled(outcome: Outcome, config: UnlearnConfig) -> float:
    """A run that never settled counts as settling after its last step and the window that
    would have to hold."""
    step = outcome["settled_step"]
    return float(step if step is not None else config.optim.max_steps + config.evaluate.patience_steps)


def _by_class(config: UnlearnConfig) -> str | None:
    return None if config.request.classes else "the request names samples; membership_auc is what it reports"


def _by_sample(config: UnlearnConfig) -> str | None:
    alone = config.request.classes and not config.request.sample_ids
    return "the request names classes; forget_fraction is what it reports" if alone else None


def _conditional(config: UnlearnConfig) -> str | None:
    """Why nothing is said of retained classes, where nothing is."""
    from models.generative import is_conditional

    return None if is_conditional(config.model.size) else f"{config.model.size} has no labels to sample from"


def _exchanging(config: UnlearnConfig) -> str | None:
    return None if config.request.exchange else "the request has no exchange class"


def _share(title: str, direction: Direction, *path: str, missing: Missing) -> Objective:
    """A share among the metrics after the run."""
    return Objective(title=title, direction=direction, of=_after(*path), missing=missing, percent=True)


def _gpu_seconds(outcome: Outcome, config: UnlearnConfig) -> float:
    return float(outcome["timing"]["step_seconds"] * outcome["world_size"] * config.train.gpus_per_worker)


OBJECTIVES: dict[str, Objective] = {
    "settled_step": Objective(title="settled at step", direction="minimize", of=_settled),
    "forget_fraction": _share(
        "forgotten class sampled", "minimize", "forget_fraction", "value", missing=_by_class
    ),
    "forget_fraction/high": _share(
        "forgotten class sampled, upper bound", "minimize", "forget_fraction", "high", missing=_by_class
    ),
    "membership_auc": Objective(
        title="attack's AUC", direction="minimize", of=_after("membership", "auc"), missing=_by_sample
    ),
    "exchange_fraction": _share(
        "exchange class sampled", "maximize", "exchange_fraction", "value", missing=_exchanging
    ),
    "exchange_density": Objective(
        title="density of the exchange class",
        direction="maximize",
        of=_after("exchange_density", "forgotten", "value"),
        missing=_exchanging,
    ),
    "retain_accuracy/mean": _share(
        "other classes right", "maximize", "retain_accuracy", "mean", missing=_conditional
    ),
    "retain_accuracy/min": _share(
        "lowest class right", "maximize", "retain_accuracy", "min", missing=_conditional
    ),
    "fid/judge": Objective(title="Frechet distance, judge", direction="minimize", of=_after("fid", "judge")),
    "step_seconds": Objective(
        title="seconds of steps",
        direction="minimize",
        of=lambda outcome, _: outcome["timing"]["step_seconds"],
    ),
    "gpu_seconds": Objective(
        title="GPU-seconds of steps",
        direction="minimize",
        of=_gpu_seconds,
        missing=lambda config: (
            None
            if config.train.gpus_per_worker
            else "train.gpus_per_worker is 0; step_seconds is what trials report"
        ),
    ),
}


def check_objectives(names: Sequence[str], base: UnlearnConfig) -> None:
    """Raise `InputError` for an objective that no trial of `base` reports."""
    for name in names:
        if name not in OBJECTIVES:
            near = difflib.get_close_matches(name, OBJECTIVES, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise InputError(
                f"search.objectives: no trial reports {name!r}; {hint}trials report {', '.join(OBJECTIVES)}"
            )
        if reason := OBJECTIVES[name].missing(base):
            raise InputError(f"search.objectives: no trial reports {name!r}: {reason}")
    if len(set(names)) != len(names):
        raise InputError(f"search.objectives: got {', '.join(names)}, expected each once")


def values_of(outcome: Outcome, config: UnlearnConfig, names: Sequence[str]) -> list[float] | None:
    """The objectives of an outcome, None when one of them was not measured."""
    measured_values = [OBJECTIVES[name].of(outcome, config) for name in names]
    return (
        None
        if any(value is None for value in measured_values)
        else [float(value) for value in measured_values if value is not None]
    )


def held(checks: Sequence[Mapping[str, Any]], patience_steps: int) -> float:
    """The settled measure after the last of `checks` (evaluation records): the highest upper bound within the
    window.

    It is below the target only when every check of the last `patience_steps` steps was, so a single good
    sample counts for nothing; while the window reaches back to step 0, the base model's own measure is in it.
    """
    key = (
        "forget_fraction/high"
        if checks[-1].get("forget_fraction/high") is not None
        else "membership_auc/high"
    )
    last = checks[-1]["step"]
    return max(check[key] for check in checks if check["step"] >= last - patience_steps)


def so_far(checks: Sequence[Mapping[str, Any]], step_seconds: float, world_size: int) -> dict[str, Any]:
    """What stands in for the outcome of a trial that has not ended: its last check."""
    last = checks[-1]

    def block(name: str, *inner: str) -> dict[str, Any]:
        return {"value": last.get(name), **{key: last.get(f"{name}/{key}") for key in inner}}

    return {
        "settled_step": None,
        "first_crossing_step": None,
        "steps": last["step"],
        "world_size": world_size,
        "after": {
            "forget_fraction": block("forget_fraction", "low", "high", "n"),
            "exchange_fraction": block("exchange_fraction"),
            "exchange_density": {"forgotten": block("exchange_density")},
            "membership": {"auc": last.get("membership_auc"), "high": last.get("membership_auc/high")},
            "retain_accuracy": {
                key: last.get(f"retain_accuracy/{key}") for key in ("mean", "min", "neighbours")
            },
            "fid": {"judge": last.get("fid/judge")},
        },
        "timing": {"step_seconds": step_seconds},
    }


def measured_twice(
    selection: Mapping[str, Any], verified: Mapping[str, Any]
) -> list[tuple[str, float, float]]:
    """(objective, as it was when the trial was chosen, on fresh seeds) of all that was
    measured both times."""
    names = (
        "forget_fraction",
        "forget_fraction/high",
        "membership_auc",
        "retain_accuracy/mean",
        "retain_accuracy/min",
    )
    paths = {"membership_auc": ("membership", "auc"), "forget_fraction": ("forget_fraction", "value")}
    pairs = []
    for name in names:
        block, key = paths.get(name) or name.split("/")
        old, new = (((side.get(block) or {}).get(key)) for side in (selection, verified))
        if old is not None and new is not None:
            pairs.append((name, old, new))
    return pairs


def ranked(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The finished trials, best first: those that pass the gate, then by the objectives in their order, then
    as they came."""
    points = _points(rows, names)
    by_number = {row["number"]: row for row in rows}
    return sorted(
        (by_number[number] for number in points),
        key=lambda row: (not row["gate_passed"], *points[row["number"]], row["number"]),
    )


def front(rows: Sequence[Row], names: Sequence[str]) -> list[int]:
    """Numbers of the finished trials that no other one beats in every objective (equal ones stand side by
    side)."""
    points = _points(rows, names)

    def beaten(point: list[float]) -> bool:
        return any(all(a <= b for a, b in zip(other, point)) and other != point for other in points.values())

    return [number for number, point in points.items() if not beaten(point)]


def _points(rows: Sequence[Row], names: Sequence[str]) -> dict[int, list[float]]:
    """The objectives of the finished trials by number, all of them to be small."""
    signs = [1 if OBJECTIVES[name].direction == "minimize" else -1 for name in names]
    return {
        row["number"]: [sign * value for sign, value in zip(signs, row["values"], strict=True)]
        for row in rows
        if row["status"] == FINISHED and row["values"] is not None
    }
