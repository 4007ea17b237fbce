"""The jobs as a user runs them, and a storage root with lake, weights and judge for those that only read."""

import contextlib
import gc
import io
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
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


def command_of(
    name: str, config: str, overrides: tuple[str, ...], verb: str | None, dry_run: bool
) -> list[str]:
    """The job's file and its arguments."""
    arguments = [*([verb] if verb else []), "--config", f"jobs/configs/{config}.yaml"]
    for override in overrides:
        arguments += ["--set", override]
    return [str(ROOT / "jobs" / f"{name}.py"), *arguments, *["--dry-run"] * dry_run]


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Said]:
    """`job("prepare_data", "prepare_digits", "storage=...")` in a process of its own, started in a directory
    of its own."""

    def run(name: str, config: str, *overrides: str, verb: str | None = None, dry_run: bool = False) -> Said:
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [sys.executable, *command_of(name, config, overrides, verb, dry_run)],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert list(elsewhere.iterdir()) == [], "a job left something in its working directory"
        return Said(code=done.returncode, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture(scope="module")
def here() -> Iterator[Callable[..., Said]]:
    """`job`, in this process: for what a process of its own would say as well, many seconds later. The jobs
    of a module share the Ray session that the first of them starts."""

    def run(name: str, config: str, *overrides: str, verb: str | None = None, dry_run: bool = False) -> Said:
        command, out, err = command_of(name, config, overrides, verb, dry_run), io.StringIO(), io.StringIO()
        handler, threshold = signal.getsignal(signal.SIGTERM), gc.get_threshold()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            patch.setattr(sys, "argv", command)
            runpy.run_path(command[0], run_name="__main__")
        signal.signal(signal.SIGTERM, handler)
        gc.set_threshold(*threshold)
        gc.unfreeze()
        code = ended.value.code
        assert isinstance(code, int)
        return Said(code=code, out=out.getvalue(), err=err.getvalue())

    yield run
    from pipeline.runtime import cluster_ray

    cluster_ray.disconnect()


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
