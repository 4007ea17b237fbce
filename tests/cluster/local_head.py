"""A real Ray head as a child process: own ports, own folder, a token; ended by its own process group."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.cluster.manifests import ROOT

PROGRAMS = Path(sys.executable).parent


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class LocalHead:
    """Context. `folder` should be short: Ray makes sockets below it, whose paths may have 107 bytes."""

    def __init__(self, folder: Path, cpus: int, environment: Mapping[str, str] | None = None) -> None:
        self.folder, self.cpus = folder, cpus
        self.token = f"token-{uuid.uuid4().hex}"
        self.address = f"http://127.0.0.1:{free_port()}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",  # the job's command says `python`
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_API_SERVER_ADDRESS": self.address,
            "RAY_USAGE_STATS_ENABLED": "0",
            **(environment or {}),
        }

    def __enter__(self) -> "LocalHead":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = (self.folder / "head.log").open("wb")
        ports = {
            name: free_port()
            for name in (
                "port",
                "ray-client-server-port",
                "dashboard-agent-listen-port",
                "metrics-export-port",
            )
        }
        environment = {
            name: value for name, value in self.environment.items() if name != "RAY_API_SERVER_ADDRESS"
        }
        self.process = subprocess.Popen(
            [
                *(PROGRAMS / "ray", "start", "--head", "--block", "--disable-usage-stats"),
                *(f"--{name}={value}" for name, value in ports.items()),
                *(f"--dashboard-port={self.address.rsplit(':', 1)[1]}", "--dashboard-host=127.0.0.1"),
                *(
                    f"--temp-dir={self.folder}",
                    f"--num-cpus={self.cpus}",
                    "--num-gpus=0",
                    "--object-store-memory=200000000",
                ),
            ],
            env=environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.metrics_port = ports["metrics-export-port"]
        deadline = time.monotonic() + 300
        while True:
            with contextlib.suppress(OSError):
                self.jobs()
                return self
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError((self.folder / "head.log").read_text()[-3000:])
            time.sleep(0.3)

    def __exit__(self, *exception: object) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        with contextlib.suppress(ProcessLookupError):  # whoever of its own group is left
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()

    def run(
        self, *command: str | Path, token: str | None = None, timeout: float = 900
    ) -> subprocess.CompletedProcess[str]:
        """A command in the checkout that finds this cluster."""
        environment = self.environment if token is None else {**self.environment, "RAY_AUTH_TOKEN": token}
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def jobs(self) -> dict[str, dict[str, Any]]:
        """What the cluster says of every submitted job, by submission id."""
        asked = urllib.request.Request(
            f"{self.address}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return {job["submission_id"]: job for job in json.load(answer)}

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(PROGRAMS / "ray", *arguments)

    def submit(self, *arguments: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        """cluster/submit.py."""
        return self.run(sys.executable, ROOT / "cluster" / "submit.py", *arguments, token=token)
