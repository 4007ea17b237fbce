"""A few of what tests/faults/mutate_sources.py does by the thousand."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "faults/mutate_sources.py"


@pytest.mark.parametrize("seed", [0])
def test_what_is_damaged_is_rejected_or_refused(seed: int) -> None:
    """In a process of its own: the most memory that one ever had is asked for."""
    options = ["--images", "200", "--parquet", "40", "--texts", "20", "--seed", str(seed)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), *options], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {name: int(count) for count, name in (line.split(None, 1) for line in done.stdout.splitlines())}
    assert counts["rows"] + counts["rejected"] == 200 and min(counts["rows"], counts["rejected"]) > 10
    assert counts["train.parquet read"] + counts["train.parquet refused"] == 40
