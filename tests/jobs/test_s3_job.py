"""The main job with everything it reads and leaves in a bucket: lake, weights, partition, checkpoints, run folder, MLflow artifacts."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import s3_servers
from test_jobs_end_to_end import MODEL, UNLEARN

from pipeline import storage

pytestmark = [pytest.mark.e2e, pytest.mark.ray]
ROOT_URI = "s3://bucket/runs"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_servers.Rclone]:
    """An S3 server process, with AWS_* pointing at it."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "bucket").mkdir()
    rclone = s3_servers.Rclone(folder)
    rclone.start()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with s3_servers.environment(rclone.port):
        yield rclone
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    rclone.stop()


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An empty home and an empty folder for temporary files, for the jobs that are started here."""
    temporary = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(temporary))
    yield tmp_path / "home", temporary
    shutil.rmtree(temporary)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_main_job_leaves_everything_in_the_bucket(
    server: s3_servers.Rclone,
    home: tuple[Path, Path],
    fill_untrained: Callable[[str], None],
    job: Callable[..., Any],
    tmp_path: Path,
) -> None:
    fill_untrained(ROOT_URI)
    tracking = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    done = job("unlearn_imagenet", "quickstart", f"storage={ROOT_URI}", tracking, "run_id=first", *UNLEARN)
    assert done.code == 0, done.err
    kept = storage.walk(ROOT_URI)
    result = storage.read_json(f"{ROOT_URI}/runs/first/result.json")
    partition = f"partitions/{result['partition_digest'][:32]}"
    manifest = storage.read_json(f"{ROOT_URI}/{partition}/manifest.json")
    sides = [file["path"] for side in ("retain", "forget", "exchange") for file in manifest[side]]
    assert {name for name in kept if name.startswith("partitions/")} == {f"{partition}/{name}" for name in ["manifest.json", *sides]}
    run = [name.removeprefix("runs/first/") for name in kept if name.startswith("runs/first/")]
    assert {"config.yaml", "request.yaml", "metrics.jsonl", "result.json", "report.html", "model/model.safetensors"} <= set(run)
    assert {"samples/before-00001.png", "samples/after.safetensors"} <= set(run)
    assert len([name for name in run if name.startswith("checkpoints/") and name.endswith("checkpoint.safetensors")]) == 2
    artifacts = {name.split("/artifacts/")[1] for name in kept if name.startswith("mlartifacts/")}
    assert {"report.html", "result.json", "samples/after-00001.png", "model/MLmodel", "model/model.safetensors"} <= artifacts
    steps = [json.loads(line) for line in storage.read_bytes(f"{ROOT_URI}/runs/first/metrics.jsonl").decode().splitlines()]
    assert [record["step"] for record in steps if record["kind"] == "step"] == [1, 2, 3, 4]

    served = {str(path.relative_to(server.folder)) for path in files(server.folder)}
    assert served == {f"bucket/runs/{name}" for name in kept}, "the bucket holds nothing else"
    where, temporary = home
    assert {path.relative_to(where).parts[0] for path in files(where)} <= {".ray"}, "Ray's own token and nothing else"
    assert {path.relative_to(temporary).parts[0] for path in files(temporary)} <= {"ray"}, "Ray's session and nothing else"
    assert not [path for path in files(temporary) if path.suffix in (".parquet", ".safetensors", ".png", ".html", ".yaml")]
    assert {path.relative_to(tmp_path).parts[0] for path in files(tmp_path)} <= {"home", "mlflow.db"}

    from pipeline.config import Tracking
    from pipeline.tracking import registry

    version = registry.resolve(Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db", model_name=MODEL), ROOT_URI, "candidate")
    assert version.source.startswith(f"{ROOT_URI}/mlartifacts/") and version.tags["weights_digest"] == result["weights_digest"]
