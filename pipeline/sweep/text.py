"""What the sweep says on the terminal."""

from collections.abc import Mapping
from typing import Any

from pipeline import storage
from pipeline.config import SweepConfig
from pipeline.sweep import scores
from pipeline.sweep.space import shown


def opening(config: SweepConfig, sweep_id: str, max_steps: int) -> str:
    """One line: how many trials of what, by whom."""
    return (
        f"{sweep_id}: {config.budget.trials} trials over {', '.join(config.space)}, each up to {max_steps}"
        f" steps; {config.search.algorithm}, {config.search.concurrency} at once, {config.trial.runner}"
    )


def ending(summary: Mapping[str, Any], uri: str) -> str:
    """The ranking, the winner, what its figures mean, where the page lies."""
    rows = {row["number"]: row for row in summary["trials"]}
    counts = {
        status: sum(row["status"] == status for row in rows.values())
        for status in (scores.FINISHED, scores.STOPPED, scores.FAILED)
    }
    retried = sum(row["attempts"] > 1 for row in rows.values())
    lines = [
        f"\n  {len(rows)} trials: "
        + ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        + (f"; {retried} retried" if retried else "")
    ]
    for place, number in enumerate(summary["ranking"][:5], 1):
        row = rows[number]
        marks = ("  front" if number in summary["front"] else "") + (
            "  the default" if number == summary["default_trial"] else ""
        )
        lines.append(
            f"  {place}. trial {number:>2}  {shown(row['settings']):<44}"
            f" {_values(summary, row['values'])}{marks}"
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
        row = rows[winner["number"]]
        twice = scores.measured_twice(row["after"], winner["verified"][-1]["after"])
        lines += [
            (
                f"  trial {winner['number']} was the best of {len(rows)}, in part the luckiest: chosen with"
                f" {_values(summary, row['values'])};"
            ),
            (
                "  on fresh seeds, which is what counts:"
                f" {', '.join(f'{name} {new:.4g} (chosen with {old:.4g})' for name, old, new in twice)}"
            ),
            f"  registered {winner['model']} version {winner['version']} @candidate (run {winner['run_id']})",
            f"  report {winner['report']}",
        ]
    lines.append(f"  sweep {storage.join(uri, 'sweep.html')}")
    return "\n".join(lines)


def _values(summary: Mapping[str, Any], values: list[float] | None) -> str:
    return ", ".join(
        f"{name} {value:.4g}" for name, value in zip(summary["objectives"], values or [], strict=False)
    )
