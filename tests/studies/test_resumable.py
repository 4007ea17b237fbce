"""Runs in plain processes: what is there is not made again, and who leaves early leaves nothing behind that
goes on."""

import threading
import time
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path
from typing import Any

from pipeline.studies.resumable import results


@dataclass(frozen=True)
class Run:
    key: str


def run(one: Run) -> dict[str, Any]:
    if one.key.startswith("endless"):
        threading.Event().wait(300)
    return {"key": one.key}


def test_leaving_early_ends_the_runs_under_way_and_keeps_what_was_finished(tmp_path: Path) -> None:
    uri = str(tmp_path / "results.jsonl")
    wanted = [Run("quick"), *(Run(f"endless {number}") for number in range(4))]
    found = results(wanted, run, uri, 2)
    assert next(found) == {"key": "quick"}
    started = time.monotonic()
    found.close()  # type: ignore[attr-defined]
    assert active_children() == [] and time.monotonic() - started < 60
    assert list(results(wanted[:1], run, uri, 2)) == [{"key": "quick"}]
