"""From a submission of the main job to its first step, by what is reached on the way, on the quickstart's
lake and models.

Twice: on a cluster that is up (`cluster/submit.py` to a head on this machine), and by a job that starts a
cluster of its own.
"""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline import config as configuration
from pipeline import storage
from pipeline.config import BenchmarkConfig, UnlearnConfig

CHECKOUT = Path(__file__).resolve().parents[2]
CONFIG = "jobs/configs/quickstart.yaml"
REPEATS = 3  # after one that leaves the partition, the base model's metrics and the uploaded code behind
SMALL = ("optim.max_steps=2", "evaluate.samples=20", "evaluate.retain_samples=1")
HEAD_S = 120.0  # a head that has not come up by then will not


def require_inputs(config: BenchmarkConfig) -> None:
    """The job's own check of what it will read: `InputError` before anything else is measured."""
    from pipeline.runs import preflight

    preflight.check(
        configuration.load(UnlearnConfig, str(CHECKOUT / CONFIG), [f"storage={_root(config)}", *SMALL])
    )


def run(config: BenchmarkConfig) -> dict[str, dict[str, float]]:
    """Median seconds between milestones, and their total."""
    job = [sys.executable, str(CHECKOUT / "jobs/unlearn_imagenet.py"), "--config", CONFIG]
    medians = {"own_cluster": _medians(config, job, {})}
    with _head() as where:
        submit = [sys.executable, str(CHECKOUT / "cluster/submit.py"), "--config", CONFIG, "--follow"]
        medians["submitted_to_a_cluster"] = _medians(config, submit, where)
    return medians


def _medians(config: BenchmarkConfig, command: list[str], where: Mapping[str, str]) -> dict[str, float]:
    from pipeline.training.worker import START_UP

    timelines = []
    root = _root(config)
    for _ in range(REPEATS + 1):
        run_id = f"start-up-{uuid.uuid4().hex[:8]}"
        sets = [part for one in (f"storage={root}", f"run_id={run_id}", *SMALL) for part in ("--set", one)]
        process = subprocess.run(
            [*command, *sets],
            capture_output=True,
            text=True,
            check=False,
            cwd=CHECKOUT,
            env={**os.environ, **where},
        )
        if process.returncode:
            raise RuntimeError(
                f"the main job ended with {process.returncode}: {(process.stdout + process.stderr)[-500:]}"
            )
        timelines.append(storage.read_json(storage.join(root, "runs", run_id, START_UP)))
    return {name: round(statistics.median(one[name] for one in timelines[1:]), 2) for name in timelines[-1]}


def _root(config: BenchmarkConfig) -> str:
    return str(Path(config.storage).resolve()) if storage.is_local(config.storage) else config.storage


@contextmanager
def _head() -> Iterator[dict[str, str]]:
    """A head on this machine with its cores and one more, behind a token; what the environment of its clients
    says of it."""
    programs = Path(sys.executable).parent
    with tempfile.TemporaryDirectory(prefix="su-", dir="/tmp") as folder:  # short: Ray makes sockets below it
        port, dashboard, client = _free_ports(3)
        where = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2,
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",  # the job's command says `python`
        }
        options = [
            f"--port={port}",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}",
            "--dashboard-host=127.0.0.1",
        ]
        more = [
            "--block",
            "--disable-usage-stats",
            f"--num-cpus={(os.cpu_count() or 1) + 1}",
            f"--temp-dir={folder}",
        ]
        own = {
            name: value for name, value in {**os.environ, **where}.items() if name != "RAY_API_SERVER_ADDRESS"
        }
        head = subprocess.Popen(
            [str(programs / "ray"), "start", "--head", *options, *more],
            env=own,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + HEAD_S
            while not _answers(where["RAY_API_SERVER_ADDRESS"]):
                if head.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("no local head came up for the start-up figures")
                time.sleep(0.2)
            yield where
        finally:
            os.killpg(head.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                head.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)
            head.wait()


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=5)
    except urllib.error.HTTPError:
        return True  # it asks for a token
    except OSError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    import socket

    with contextlib.ExitStack() as open_:
        probes = [open_.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
