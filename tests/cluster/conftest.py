"""One local head for the tests that submit to it, with secrets planted in its environment and in the tracking
URI."""

import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.local_head import PROGRAMS, LocalHead, free_port
from tests.jobs.conftest import fill_untrained, untrained  # noqa: F401

PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "planted-wJalrXUtnFEMIK7MDENG",
    "MLFLOW_PASSWORD_IN_URI": "planted-hunter2hunter2",
}


@pytest.fixture(scope="session")
def head() -> Iterator[LocalHead]:
    folder = Path(tempfile.mkdtemp(prefix="head-"))
    try:
        with LocalHead(
            folder, cpus=3, environment={"AWS_SECRET_ACCESS_KEY": PLANTED["AWS_SECRET_ACCESS_KEY"]}
        ) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def mlflow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="session")
def mlflow_uri(mlflow_folder: Path) -> Iterator[str]:
    """The server that cluster/services.yaml and compose.yaml start, on this machine; the URI carries a
    password."""
    port = free_port()
    command = [PROGRAMS / "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    places = [
        f"--backend-store-uri=sqlite:///{mlflow_folder}/mlflow.db",
        f"--artifacts-destination={mlflow_folder}/mlartifacts",
    ]
    with (mlflow_folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, *places, f"--allowed-hosts=127.0.0.1:{port}"],
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 300
            while not answers(f"http://127.0.0.1:{port}/health"):
                assert server.poll() is None and time.monotonic() < deadline, (
                    mlflow_folder / "server.log"
                ).read_text()[-3000:]
                time.sleep(0.3)
            yield f"http://operator:{PLANTED['MLFLOW_PASSWORD_IN_URI']}@127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, 9)
            server.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
