"""kill -9 of the driver in the middle of a sweep, and the same command again."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sweeps import ROOT, TINY

pytestmark = pytest.mark.e2e
TRIALS = 3


def test_finished_trials_are_not_run_again(root: str, tmp_path: Path) -> None:
    import json

    overrides = [
        f"storage={root}",
        "run_id=killed",
        f"budget.trials={TRIALS}",
        *TINY,
        "set.optim.max_steps=6",
    ]
    command = [
        sys.executable,
        str(ROOT / "jobs/sweep_imagenet.py"),
        "--config",
        "jobs/configs/sweep_quickstart.yaml",
    ]
    for override in overrides:
        command += ["--set", override]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    trials = Path(root) / "sweeps" / "killed" / "trials"

    def ended() -> dict[str, int]:
        return {path.parent.name: path.stat().st_mtime_ns for path in sorted(trials.glob("*/outcome.json"))}

    first = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    waited, deadline = threading.Event(), time.monotonic() + 300
    while not list(trials.glob("*/trial.json")):  # any: they run side by side
        assert first.poll() is None, first.stderr.read() if first.stderr else ""
        assert time.monotonic() < deadline, "no trial ended in five minutes"
        waited.wait(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before = ended()
    assert 1 <= len(before) < TRIALS, "the kill came too late to show anything"

    second = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert second.returncode == 0, second.stderr
    assert "trials have ended before; they are not run again" in second.stdout
    after = ended()
    assert len(after) == TRIALS and {name: after[name] for name in before} == before
    summary = json.loads((trials.parent / "sweep.json").read_text())
    assert [row["number"] for row in summary["trials"]] == list(range(TRIALS))
    assert (
        all(row["status"] == "finished" for row in summary["trials"])
        and summary["winner"]["version"] is not None
    )
