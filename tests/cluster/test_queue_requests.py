"""The RayJob that a scheduler makes of the ledger: which requests, how urgent, once."""

import datetime
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import queue_requests
from pipeline.config import load
from pipeline.config.process import ProcessConfig
from pipeline.requests import ledger
from pipeline.requests.ledger import Move
from tests.cluster.manifests import documents, kuberay_schema

TODAY = datetime.date(2026, 6, 1)
CONFIG = "jobs/configs/process_imagenet.yaml"


def submit(root: Path, name: str, days: int, *moves: Move) -> None:
    due = ledger.today() + datetime.timedelta(days=days)
    terms = {
        "model_name": "dit-imagenet-unlearned",
        "lake": "imagenet",
        "classes": [1],
        "exchange": {1: [2]},
        "samples": None,
        "received": "2026-01-01",
        "due": due.isoformat(),
        "legal_basis": "",
        "approver": "",
    }
    wanted = [Move(name="received", request=name, details=terms), Move(name="accepted", request=name), *moves]

    def decide(known: ledger.Ledger) -> list[Move]:
        done = len(known.requests[name].history) if name in known.requests else 0
        return wanted[done:]

    ledger.append(str(root), decide)


class Kubernetes:
    """An API that keeps what is created and knows names."""

    def __init__(self) -> None:
        self.created: dict[str, Any] = {}
        self.tokens: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.tokens.append(self.headers["Authorization"])
                there = job["metadata"]["name"] in outer.created
                outer.created.setdefault(job["metadata"]["name"], (self.path, job))
                self.send_response(409 if there else 201)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server.server_port}/apis/ray.io/v1/namespaces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    api = Kubernetes()
    (tmp_path / "token").write_text("t0ken\n")
    original = queue_requests.create
    monkeypatch.setattr(queue_requests, "create", lambda job: original(job, api.uri, tmp_path))
    yield api
    api.server.shutdown()


def call(root: Path, *flags: str) -> int:
    return queue_requests.main([f"--config={CONFIG}", f"--set=storage={root}", *flags])


@pytest.mark.parametrize(
    ("days", "name"),
    [(-9, "overdue"), (3, "overdue"), (4, "soon"), (14, "soon"), (15, "later"), (400, "later")],
)
def test_priority(days: int, name: str) -> None:
    assert queue_requests.priority(TODAY + datetime.timedelta(days=days), TODAY) == f"unlearn-{name}"
    classes = [item["metadata"]["name"] for item in documents("requests.yaml") if "value" in item]
    assert f"unlearn-{name}" in classes


def test_the_job_is_queued_once(
    tmp_path: Path, kubernetes: Kubernetes, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs"
    assert call(root) == 0 and "nothing is open" in capsys.readouterr().out and not kubernetes.created
    submit(root, "later", 40)
    submit(root, "first", 10)
    assert call(root) == 0 and "queued" in capsys.readouterr().out
    assert call(root) == 0 and "is queued already" in capsys.readouterr().out
    ((path, job),) = kubernetes.created.values()
    assert path.endswith("/namespaces/unlearn/rayjobs") and set(kubernetes.tokens) == {"Bearer t0ken"}
    assert job["metadata"]["labels"] == {
        "kueue.x-k8s.io/queue-name": "unlearn",
        "kueue.x-k8s.io/priority-class": "unlearn-soon",
    }
    assert job["spec"]["metadata"] == {"requests": "first, later"}
    submit(root, "third", 5)
    assert call(root) == 0 and len(kubernetes.created) == 2, "another request is another job"


def test_what_was_tried_alarms_and_is_not_queued(
    tmp_path: Path, kubernetes: Kubernetes, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs"
    submit(root, "tried", 40, Move(name="postponed", request="tried", details={"reason": "the gate"}))
    assert call(root) == 3 and not kubernetes.created
    assert "tried in vain: tried" in capsys.readouterr().out
    submit(root, "late", -1)
    assert call(root) == 3 and len(kubernetes.created) == 1


def test_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    import jsonschema

    root = tmp_path / "runs"
    submit(root, "r1", 40)
    assert call(root, "--print") == 0
    job = yaml.safe_load(capsys.readouterr().out)
    python, script, *rest = shlex.split(job["spec"]["entrypoint"])
    assert (python, script) == ("python", "/app/jobs/process_requests.py")
    config = load(ProcessConfig, rest[1], [rest[3]])
    assert config.storage == str(root) and config.promote == "approval"
    cluster = job["spec"]["rayClusterSpec"]
    assert not cluster["enableInTreeAutoscaling"] and "autoscalerOptions" not in cluster, (
        "Kueue admits a size"
    )
    assert all(group["replicas"] == 1 for group in cluster["workerGroupSpecs"])
    assert job["spec"]["shutdownAfterJobFinishes"], "or Kueue keeps the quota"
    jsonschema.validate(job, kuberay_schema("RayJob"))


def test_the_environment_gives_the_storage_root_to_the_job_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(tmp_path / "runs", "r1", 40)
    monkeypatch.setenv("UNLEARN_STORAGE", str(tmp_path / "runs"))
    assert queue_requests.main([f"--config={CONFIG}", "--print"]) == 0
    entrypoint = yaml.safe_load(capsys.readouterr().out)["spec"]["entrypoint"]
    assert entrypoint.endswith(f"""--set 'storage="{tmp_path}/runs"'""")
    assert call(tmp_path / "elsewhere", "--print") == 0
    assert "nothing is open" in capsys.readouterr().out, "--set comes first"


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, "--set=start=nowhere") == 2
    assert capsys.readouterr().err.startswith("error: start: got 'nowhere'")


def test_the_cron_job_may_create_and_nothing_else() -> None:
    by_kind = {item["kind"]: item for item in documents("requests.yaml")}
    assert by_kind["Role"]["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}
    ]
    spec = by_kind["CronJob"]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    (container,) = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python", "/app/cluster/queue_requests.py"]
    sets = [part.removeprefix("--set=") for part in container["args"] if part.startswith("--set=")]
    path = container["args"][0].removeprefix("--config=/app/")
    assert load(ProcessConfig, path, sets).tracking.uri == "http://mlflow:5000"
