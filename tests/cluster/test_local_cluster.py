"""The commands of cluster/README.md on a real head with token authentication: status, exit codes, metadata,
and no secret anywhere."""

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import PLANTED
from tests.cluster.local_head import LocalHead
from tests.cluster.manifests import CLUSTER, ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

TINY = {
    "optim": {"batch_size": 16, "max_steps": 4},
    "partition": {"lanes": 4, "segment_steps": 2},
    "train": {"workers": 2, "cpus_per_worker": 0.4},
    "evaluate": {
        "every": 2,
        "samples": 20,
        "retain_samples": 2,
        "final_samples": 100,
        "final_retain_samples": 4,
        "sampler_steps": 2,
        "final_sampler_steps": 3,
    },
}
EMITTER = """
import sys, time
from pathlib import Path
import ray
from pipeline.training.timings_ray import PHASES, Quality, Timings

@ray.remote(num_cpus=0)
def emit(folder):
    timings, quality = Timings(folder, "metrics", 0, 1, None), Quality("metrics")
    for step in range(1, 600):
        timings({"step": step, **dict.fromkeys(PHASES, 0.1)})
        measured = {"forget_fraction": 0.5, "membership_auc": 0.5}
        measured |= {"retain_accuracy/mean": 0.9, "retain_accuracy/min": 0.8}
        quality({"kind": "evaluation", **measured})
        if (Path(folder) / "enough").exists():
            return
        time.sleep(0.2)

ray.init(log_to_driver=False)
ray.get(emit.remote(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def config(untrained: str, mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart on the smallest settings, its tracking URI with a password: given as a file, since a
    command line is shown."""
    values = yaml.safe_load((ROOT / "jobs/configs/quickstart.yaml").read_text())
    for section, small in TINY.items():
        values[section] = {**values.get(section, {}), **small}
    values |= {"storage": untrained, "tracking": {**values["tracking"], "uri": mlflow_uri}}
    path = tmp_path_factory.mktemp("config") / "quickstart.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def finished(head: LocalHead, config: Path) -> str:
    """The output of `ray job submit` for the main job."""
    metadata = ("--metadata-json", '{"request_id": "forget-1"}', "--submission-id", "first")
    job = ("python", "jobs/unlearn_imagenet.py", "--config", str(config), "--set", "run_id=first")
    done = head.ray("job", "submit", "--working-dir", ".", *metadata, "--", *job)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_submitted_job_succeeds_on_the_cluster_it_was_given_to(
    head: LocalHead, finished: str, untrained: str
) -> None:
    assert "registered dit-digits-unlearned version 1 @candidate" in finished
    result = json.loads((Path(untrained) / "runs/first/result.json").read_text())
    assert (result["run_id"], result["world_size"], result["steps"]) == ("first", 2, 4)
    job = head.jobs()["first"]
    assert (job["status"], job["driver_exit_code"], job["metadata"]["request_id"]) == (
        "SUCCEEDED",
        0,
        "forget-1",
    )
    assert job["driver_info"], "its driver joined this cluster instead of starting one of its own"
    status = head.ray("job", "status", "first")
    assert "succeeded" in status.stderr + status.stdout
    assert len(list(head.folder.glob("session_2*"))) == 1


def files(folder: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*") if path.is_file()}


def test_submit_follows_to_the_end_and_passes_bad_input_on(
    head: LocalHead, finished: str, untrained: str
) -> None:
    """Another tracking store is another setting, and is refused."""
    overrides = {"tracking.uri": f"sqlite:///{untrained}/mlflow.db", **TINY}
    settings = [f"--set={key}={json.dumps(value)}" for key, value in overrides.items()]
    own = ("--storage", untrained, "--run-id", "first")
    before = files(untrained)
    done = head.submit("--config", "jobs/configs/quickstart.yaml", *own, *settings, "--follow")
    (job_id,) = re.findall(r"^first-[0-9a-f]{6}$", done.stdout, re.MULTILINE)
    job = head.jobs()[job_id]
    assert (done.returncode, job["status"], job["driver_exit_code"]) == (2, "FAILED", 2), done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("error: "))
    assert "was started with other settings (tracking.uri" in line and line in job["message"]
    assert "Traceback" not in done.stdout and PLANTED["MLFLOW_PASSWORD_IN_URI"] not in done.stdout
    assert re.fullmatch(r"digits-forget-1-[0-9a-f]{10}", job["metadata"]["request_id"])
    assert job["metadata"]["run_id"] == "first" and files(untrained) == before


def test_a_job_succeeds_by_submit(head: LocalHead, tmp_path: Path) -> None:
    done = head.submit(
        "--job",
        "prepare_data",
        "--config",
        "jobs/configs/prepare_digits.yaml",
        "--storage",
        str(tmp_path),
        "--follow",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lake digits: " in done.stdout and done.stdout.splitlines()[-1].endswith(": SUCCEEDED")
    assert (tmp_path / "lakes/digits/manifest.json").is_file()


def test_a_wrong_token_is_one_clear_line(head: LocalHead, tmp_path: Path) -> None:
    before = head.jobs().keys()
    done = head.submit(
        "--config",
        "jobs/configs/quickstart.yaml",
        "--storage",
        str(tmp_path),
        token="another-token-0123456789",
    )
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "refuses the token" in done.stderr and "another-token" not in done.stderr
    assert head.jobs().keys() == before


def test_no_planted_secret_is_anywhere(
    head: LocalHead, finished: str, untrained: str, mlflow_folder: Path
) -> None:
    """Run folder, report, MLflow's database and artifacts, the driver's log, all of Ray's logs, what the
    dashboard is told."""
    told = json.dumps(head.jobs()).encode()
    secrets = {**PLANTED, "RAY_AUTH_TOKEN": head.token}
    said = head.ray("job", "logs", "first").stdout
    assert "forget [1]" in said
    places = [Path(untrained) / "runs", mlflow_folder, head.folder]
    files = [
        path for place in places for path in place.rglob("*") if path.is_file() and not path.is_symlink()
    ]
    names = {path.name for path in files}
    assert {
        "config.yaml",
        "result.json",
        "report.html",
        "metrics.jsonl",
        "mlflow.db",
        "job-driver-first.log",
    } <= names
    assert b"operator:***@" in (Path(untrained) / "runs/first/config.yaml").read_bytes(), (
        "the rest of the URI stays readable"
    )
    for name, secret in secrets.items():
        found = [str(path) for path in files if secret.encode() in path.read_bytes()]
        assert found == [], name
        for text in (told, said.encode(), finished.encode()):
            assert secret.encode() not in text, name


def test_prometheus_sees_the_metrics_the_dashboard_asks_for(head: LocalHead, tmp_path: Path) -> None:
    """Under the very names and labels, as the node's metrics port shows them."""
    board = (CLUSTER / "grafana-dashboard.json").read_text()
    wanted = set(re.findall(r"(ray_unlearn_[a-z_]+)\{", board))
    script = tmp_path / "script"
    script.mkdir()
    (script / "emit.py").write_text(EMITTER)
    environment = json.dumps({"working_dir": str(script), "env_vars": {"PYTHONPATH": str(ROOT)}})
    job = (
        "--no-wait",
        "--submission-id",
        "metrics",
        "--runtime-env-json",
        environment,
        "--",
        "python",
        "emit.py",
        str(tmp_path),
    )
    assert head.ray("job", "submit", *job).returncode == 0
    shown, deadline = "", time.monotonic() + 300
    while missing := {name for name in wanted if f"{name}{{" not in shown}:
        assert time.monotonic() < deadline, f"{missing}\n{head.ray('job', 'logs', 'metrics').stdout[-2000:]}"
        time.sleep(1)
        with urllib.request.urlopen(f"http://127.0.0.1:{head.metrics_port}/metrics", timeout=10) as answer:
            shown = "\n".join(
                line for line in answer.read().decode().splitlines() if 'run="metrics"' in line
            )  # earlier jobs show theirs too
    (tmp_path / "enough").touch()
    line = next(
        line
        for line in shown.splitlines()
        if line.startswith("ray_unlearn_phase_seconds_total{") and 'phase="reduce"' in line
    )
    assert 'rank="0"' in line and float(line.rsplit(" ", 1)[1]) > 0
