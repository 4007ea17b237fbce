"""What a sweep says on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import storage
from pipeline.config import SweepConfig
from pipeline.sweep import scores
from pipeline.sweep.space import shown


def trial_line(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """A trial in a line of the terminal."""
    head = f"trial {row['number']:>2}  {shown(row['settings'])}: "
    if row["status"] == scores.FAILED:
        attempts = f"{row['attempts']} attempt{'s' * (row['attempts'] > 1)}"
        return f"{head}failed after {attempts}: {str(row['reason'])[:160]}"
    if row["status"] == scores.STOPPED:
        where = f"at step {row['step']}, held measure {row['held']:.3f}" if row["held"] is not None else ""
        return f"{head}stopped {where or 'before its first check'}"
    settled = "not settled" if row["settled_step"] is None else f"settled at {row['settled_step']}"
    return f"{head}{settled}; {_values(names, row['values'])}"


def opening(config: SweepConfig, sweep_id: str, max_steps: int) -> str:
    """One line: how many trials of what, by whom."""
    return (
        f"{sweep_id}: {config.budget.trials} trials over {', '.join(config.space)}, each up to {max_steps}"
        f" steps; {config.search.algorithm}, {config.search.concurrency} at once, {config.trial.runner}"
    )


def ending(summary: Mapping[str, Any], uri: str) -> str:
    """The ranking, the winner, what its figures mean, where the page lies."""
    names, table = summary["objectives"], {row["number"]: row for row in summary["trials"]}
    retried = sum(row["attempts"] > 1 for row in table.values())
    lines = [f"\n  {len(table)} trials: {counts(summary)}" + (f"; {retried} retried" if retried else "")]
    for place, number in enumerate(summary["ranking"][:5], 1):
        row = table[number]
        marks = "  front" * (number in summary["front"])
        marks += "  the default" * (number == summary["default_trial"])
        lines.append(
            f"  {place}. trial {number:>2}  {shown(row['settings']):<44} "
            f"{_values(names, row['values'])}{marks}"
        )
    winner, seconds = summary["winner"], summary["seconds"]
    over = seconds["overhead_per_trial"]
    if over is not None:
        lines.append(
            f"  {seconds['searched']:.0f} s for the trials; beyond steps and evaluation a trial took"
            f" {over:.1f} s (median)"
        )
    if winner["number"] is None:
        lines.append(
            f"  none of the best {len(winner['verified'])} holds on fresh seeds; nothing was registered"
        )
    else:
        row = table[winner["number"]]
        twice = scores.measured_twice(row["after"], winner["verified"][-1]["after"])
        lines += [
            f"  trial {winner['number']} was the best of {len(table)}, in part the luckiest: chosen with"
            f" {_values(names, row['values'])};",
            "  on fresh seeds, which is what counts:"
            f" {', '.join(f'{name} {new:.4g} (chosen with {old:.4g})' for name, old, new in twice)}",
            f"  registered {winner['model']} version {winner['version']} @candidate (run {winner['run_id']})",
            f"  report {winner['report']}",
        ]
    return "\n".join([*lines, f"  sweep {storage.join(uri, 'sweep.html')}"])


def counts(summary: Mapping[str, Any]) -> str:
    statuses = [row["status"] for row in summary["trials"]]
    kinds = (scores.FINISHED, scores.STOPPED, scores.FAILED)
    return ", ".join(f"{statuses.count(kind)} {kind}" for kind in kinds if kind in statuses)


def _values(names: Sequence[str], values: Sequence[float] | None) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in zip(names, values or [], strict=False))
