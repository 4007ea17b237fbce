"""A Ray cluster of processes on this machine, the main job on it, and ways to kill any part: only what was
started here is ever touched."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from network import Network, Place

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
ENDED = ("FAILED", "STOPPED", "SUCCEEDED")
SMALL = {  # a run of 48 steps that never settles; the weights were never trained, so nothing is forgotten
    "seed": 3,
    "partition.lanes": 4,
    "partition.segment_steps": 8,
    "optim.batch_size": 16,
    "optim.max_steps": 48,
    "evaluate.every": 4,
    "evaluate.samples": 20,
    "evaluate.retain_samples": 2,
    "evaluate.final_samples": 100,
    "evaluate.final_retain_samples": 2,
    "evaluate.sampler_steps": 2,
    "evaluate.final_sampler_steps": 2,
    "evaluate.retention_floor": None,
    "train.workers": 2,
    "train.cpus_per_worker": 0.4,
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(
    what: str, happened: Callable[[], Any], *, timeout_s: float = 300.0, every_s: float = 0.1
) -> Any:
    """The first true answer of `happened`."""
    deadline = time.monotonic() + timeout_s
    while not (answer := happened()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(every_s)
    return answer


def children_of(pid: int) -> list[int]:
    """Every living process below `pid`, nearest first."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        todo = [child for one in todo for child in parents.get(one, [])]
        found += todo
    return found


def called(pid: int) -> str:
    """The command line, which Ray rewrites to what a worker does."""
    with contextlib.suppress(OSError):
        return (
            (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    return ""


def command(storage: str, run_id: str, **changes: Any) -> list[str]:
    """The main job on the settings of `SMALL`."""
    settings = {**SMALL, **changes, "storage": storage, "run_id": run_id}
    sets = [
        part
        for key, value in settings.items()
        for part in ("--set", f"{key}={json.dumps(value) if value is None else value}")
    ]
    return [sys.executable, "jobs/unlearn_imagenet.py", "--config", "jobs/configs/quickstart.yaml", *sets]


class Run:
    """What a run has left under local storage so far."""

    def __init__(self, storage: str, run_id: str) -> None:
        self.folder = Path(storage) / "runs" / run_id

    @property
    def step(self) -> int:
        """The last step with a checkpoint."""
        whole = [int(path.parent.name) for path in self.folder.glob("checkpoints/*/checkpoint.json")]
        return max(whole, default=0)

    @property
    def result(self) -> dict[str, Any] | None:
        path = self.folder / "result.json"
        return json.loads(path.read_text()) if path.exists() else None


class Process:
    """A child in a session of its own, its output in a file; on the way out whatever is left of it ends."""

    def __init__(self, arguments: list[str], log: Path, environment: dict[str, str]) -> None:
        self.log = log
        with log.open("ab") as out:
            self.popen = subprocess.Popen(
                arguments,
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self.popen.pid

    @property
    def code(self) -> int | None:
        return self.popen.poll()

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def below(self, name: str) -> list[int]:
        """Living processes below this one whose command line holds `name`."""
        return [pid for pid in children_of(self.pid) if name in called(pid)]

    def end(self) -> None:
        """Kill it and all that is below it."""
        family = [self.pid, *children_of(self.pid)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.popen.wait()


def environment(**more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RAY_") and name != "PYTHONPATH"
    }
    path = f"{PROGRAMS}{os.pathsep}{kept['PATH']}"
    return {
        **kept,
        "PATH": path,
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


class Cluster:
    """Context: a head without CPUs of its own and raylets with `cpus` each, behind a token. Raylets start one
    after another.

    Every node has an address of its own where this machine allows it (`Network`).
    """

    def __init__(self, folder: Path, raylets: int, *, cpus: float = 1, dashboard: bool = True) -> None:
        self.folder, self.count, self.cpus, self.dashboard = folder, raylets, cpus, dashboard
        folder.mkdir(parents=True, exist_ok=True)
        token = folder / "token"
        token.write_text(uuid.uuid4().hex * 2)
        token.chmod(0o600)
        self.ports = {name: free_port() for name in ("port", "dashboard-port", "ray-client-server-port")}
        self.network = Network()
        self.environment = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
        self.head: Process | None = None
        self.raylets: list[Process] = []
        self.leaving: list[Process] = []  # told to go, which takes them a while
        self.started = 0

    def __enter__(self) -> "Cluster":
        try:
            self.network.__enter__()
            self.place = self.network.place()  # the head's, also of one that comes in its place
            self.start_head()
            for _ in range(self.count):
                self.start_raylet()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for process in [*self.leaving, *self.raylets, *([self.head] if self.head else [])]:
            process.end()
        self.network.__exit__()

    @property
    def address(self) -> str:
        return f"{self.place.address}:{self.ports['port']}"

    @property
    def dashboard_url(self) -> str:
        return f"http://{self.place.address}:{self.ports['dashboard-port']}"

    def start_head(self) -> None:
        """Start the head, or one in its place on the same ports."""
        self.head = self._start(
            self.place,
            "--head",
            *(f"--{name}={port}" for name, port in self.ports.items()),
            *(
                "--num-cpus=0",
                f"--dashboard-host={self.place.address}",
                f"--include-dashboard={self.dashboard}",
            ),
        )

    def restart_head(self) -> None:
        """Kill -9 the head; what depended on it goes too, and a new head and new raylets come up on the same
        address."""
        count = len(self.raylets)
        assert self.head is not None
        for process in [self.head, *self.raylets]:
            process.end()
        self.raylets = []
        self.start_head()
        for _ in range(count):
            self.start_raylet()

    def start_raylet(self, hidden: str | None = None) -> Process:
        """One more raylet; the folder `hidden` looks empty to it, as a folder of another machine would (needs
        root)."""
        raylet = self._start(
            self.network.place(), f"--address={self.address}", f"--num-cpus={self.cpus:g}", hidden=hidden
        )
        self.raylets.append(raylet)
        return raylet

    def _start(self, place: Place, *arguments: str, hidden: str | None = None, again: bool = True) -> Process:
        """A node, tried twice: on a busy machine Ray's own time-outs can end one that has only just begun."""
        self.started += 1
        log = self.folder / f"node-{self.started}.log"
        options = [
            *("--block", "--disable-usage-stats", "--object-store-memory=100000000", "--num-gpus=0"),
            f"--node-ip-address={place.address}",
            # nodes that share one unpack working directories over each other's
            f"--temp-dir={self.folder / f'r{self.started}'}",
        ]
        before = (
            ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$1" && shift && exec "$@"', "sh", hidden]
            if hidden
            else []
        )
        called = [*place.before, *before, str(PROGRAMS / "ray"), "start", *options, *arguments]
        process = Process(called, log, {**self.environment, **dict(place.environment)})

        def up() -> bool:
            return process.code is not None or "Ray runtime started" in process.said

        wait_until("a node to start", up)
        if process.code is None:
            return process
        process.end()
        if again:
            return self._start(place, *arguments, hidden=hidden, again=False)
        raise RuntimeError(f"a node ended at once: {process.said[-2000:]}")

    @property
    def nodes(self) -> list[Process]:
        return [*self.raylets, *([self.head] if self.head else [])]

    def pids(self, name: str) -> list[int]:
        """Living processes of this cluster whose command line holds `name`."""
        return [pid for node in self.nodes for pid in node.below(name)]

    def driver(self, log: str, arguments: list[str]) -> Process:
        """A driver on the cluster, as `ray job submit` starts one."""
        said = {**self.environment, **dict(self.place.environment), "RAY_ADDRESS": self.address}
        return Process([*self.place.before, *arguments], self.folder / log, said)

    def submit(self, job: str, arguments: list[str]) -> None:
        """`ray job submit`, as a user does it; returns once it is taken."""
        environment_ = {"working_dir": str(ROOT), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}
        said = self.ray(
            *(
                "job",
                "submit",
                "--no-wait",
                "--submission-id",
                job,
                "--runtime-env-json",
                json.dumps(environment_),
                "--",
                *arguments,
            )
        )
        assert said.returncode == 0, said.stdout + said.stderr

    def status(self, job: str) -> str:
        """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED, as the job server says; a `ray job status` would
        take seconds."""
        token = (self.folder / "token").read_text()
        asked = urllib.request.Request(
            f"{self.dashboard_url}/api/jobs/{job}", headers={"Authorization": f"Bearer {token}"}
        )

        def answer() -> str | None:
            with contextlib.suppress(OSError), urllib.request.urlopen(asked, timeout=30) as said:
                return str(json.load(said)["status"])
            return None

        return str(wait_until("the job server", answer, timeout_s=60, every_s=1.0))

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        said = {**self.environment, "RAY_API_SERVER_ADDRESS": self.dashboard_url}
        return subprocess.run(
            [str(PROGRAMS / "ray"), *arguments],
            cwd=ROOT,
            env=said,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
