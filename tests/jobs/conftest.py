"""The jobs as a user runs them, and a storage root with lake, weights and judge for those that only read."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from untrained import fill

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Said:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Said]:
    """`job("prepare_data", "prepare_digits", "storage=...")` in a process of its own, started in a directory
    of its own."""

    def run(name: str, config: str, *overrides: str, verb: str | None = None, dry_run: bool = False) -> Said:
        command = [
            sys.executable,
            str(ROOT / "jobs" / f"{name}.py"),
            *([verb] if verb else []),
            "--config",
            f"jobs/configs/{config}.yaml",
        ]
        for override in overrides:
            command += ["--set", override]
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            command + ["--dry-run"] * dry_run,
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert list(elsewhere.iterdir()) == [], "a job left something in its working directory"
        return Said(code=done.returncode, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory, fill_untrained: Callable[[str], None]) -> str:
    """A storage root with the digits lake and weights that were never trained: enough for every check before
    the work."""
    root = str(tmp_path_factory.mktemp("untrained"))
    fill_untrained(root)
    return root


@pytest.fixture(scope="session")
def fill_untrained() -> Callable[[str], None]:
    """Puts the digits lake and untrained weights under a storage root, wherever it is."""
    return fill
