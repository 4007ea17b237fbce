"""The main job with everything it reads and leaves in a bucket: lake, weights, partition, checkpoints, run
folder, MLflow artifacts."""

import itertools
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import s3_servers
from test_jobs_end_to_end import MODEL, UNLEARN

from pipeline import storage

pytestmark = [pytest.mark.e2e, pytest.mark.ray]
ROOT_URI = "s3://bucket/runs"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_servers.Rclone]:
    with s3_servers.serving(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(server: s3_servers.Rclone) -> Iterator[s3_servers.Proxy]:
    """What stands between the jobs and the server."""
    with s3_servers.proxied(server) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="module")
def filled(proxy: s3_servers.Proxy, fill_untrained: Callable[[str], None]) -> None:
    fill_untrained(ROOT_URI)


@dataclass(frozen=True, kw_only=True)
class First:
    """The undisturbed run: its result, and what it left in an empty home and an empty folder for temporary
    files."""

    result: dict[str, Any]
    home: list[Path]
    temporary: list[Path]


@pytest.fixture(scope="module")
def first(
    filled: None, job: Callable[..., Any], database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[First]:
    # short: Ray's sockets lie there
    home, temporary = tmp_path_factory.mktemp("home"), Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("TMPDIR", str(temporary))
        done = job(
            "unlearn_imagenet",
            "quickstart",
            f"storage={ROOT_URI}",
            f"tracking.uri={database}",
            "run_id=first",
            *UNLEARN,
        )
    assert done.code == 0, done.err
    result = storage.read_json(f"{ROOT_URI}/runs/first/result.json")
    yield First(result=result, home=files(home), temporary=files(temporary))
    shutil.rmtree(temporary)


def files(folder: Path) -> list[Path]:
    """Below `folder`, as paths relative to it."""
    return [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]


def test_the_main_job_leaves_everything_in_the_bucket(
    server: s3_servers.Rclone, first: First, database: str
) -> None:
    result = first.result
    kept = storage.walk(ROOT_URI)
    partition = f"partitions/{result['partition_digest'][:32]}"
    manifest = storage.read_json(f"{ROOT_URI}/{partition}/manifest.json")
    sides = [file["path"] for side in ("retain", "forget", "exchange") for file in manifest[side]]
    assert {name for name in kept if name.startswith("partitions/")} == {
        f"{partition}/{name}" for name in ["manifest.json", *sides]
    }
    run = [name.removeprefix("runs/first/") for name in kept if name.startswith("runs/first/")]
    assert {
        "config.yaml",
        "request.yaml",
        "metrics.jsonl",
        "result.json",
        "report.html",
        "model/model.safetensors",
    } <= set(run)
    assert {"samples/before-00001.png", "samples/after.safetensors"} <= set(run)
    assert (
        len(
            [
                name
                for name in run
                if name.startswith("checkpoints/") and name.endswith("checkpoint.safetensors")
            ]
        )
        == 2
    )
    artifacts = {name.split("/artifacts/")[1] for name in kept if name.startswith("mlartifacts/")}
    assert {
        "report.html",
        "result.json",
        "samples/after-00001.png",
        "MLmodel",
        "model.safetensors",
    } <= artifacts
    steps = [
        json.loads(line)
        for line in storage.read_bytes(f"{ROOT_URI}/runs/first/metrics.jsonl").decode().splitlines()
    ]
    assert [record["step"] for record in steps if record["kind"] == "step"] == [1, 2, 3, 4]

    assert {str(path) for path in files(server.folder)} == {f"bucket/runs/{name}" for name in kept}, (
        "the bucket holds nothing else"
    )
    assert {path.parts[0] for path in first.home} <= {".ray"}, "Ray's own token and nothing else"
    assert {path.parts[0] for path in first.temporary} <= {"ray"}, "Ray's session and nothing else"
    assert not [
        path
        for path in first.temporary
        if path.suffix in (".parquet", ".safetensors", ".png", ".html", ".yaml")
    ]

    from pipeline.config import Tracking
    from pipeline.tracking import registry

    version = registry.resolve(Tracking(uri=database, model_name=MODEL), ROOT_URI, "candidate")
    assert (
        version.source.startswith(f"{ROOT_URI}/mlartifacts/")
        and version.tags["weights_digest"] == result["weights_digest"]
    )


def test_the_main_job_through_faults_and_an_outage_gives_the_same_weights(
    server: s3_servers.Rclone, proxy: s3_servers.Proxy, first: First, job: Callable[..., Any], database: str
) -> None:
    """Every two seconds all connections break and the next one meets a 503, a reset or a cut body; twice the
    server is away for 8 s: in the training, and while the version's files are written."""
    storage.remove(f"{ROOT_URI}/partitions")
    runs, ended = server.folder / "bucket/runs", threading.Event()
    models = set(runs.glob("mlartifacts/models/*"))

    outages = [
        lambda: (runs / "runs/second/checkpoints").exists(),
        lambda: set(runs.glob("mlartifacts/models/*")) != models,
    ]

    def torment() -> None:
        faults = itertools.cycle(("503", "truncate", "reset"))
        for tick in itertools.count(1):
            if ended.wait(0.05):
                return
            if tick % 40 == 0:
                proxy.misbehave(next(faults))
            if outages and outages[0]():
                server.stop()
                ended.wait(8)
                server.start()
                outages.pop(0)

    tormentor = threading.Thread(target=torment)
    tormentor.start()
    try:
        done = job(
            "unlearn_imagenet",
            "quickstart",
            f"storage={ROOT_URI}",
            f"tracking.uri={database}",
            "run_id=second",
            *UNLEARN,
        )
    finally:
        ended.set()
        tormentor.join()
        proxy.faults.clear()
    assert done.code == 0, done.err
    assert {"503", "truncate", "reset"} <= set(proxy.served) and not outages, "the faults were met"
    second = storage.read_json(f"{ROOT_URI}/runs/second/result.json")
    for key in ("partition_digest", "weights_digest", "before", "after"):
        assert second[key] == first.result[key], key


def test_a_server_that_stays_away_is_named_with_the_object(
    filled: None, here: Callable[..., Any], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARN_STORAGE_PATIENCE_S", "1")
    own = [f"storage={ROOT_URI}", f"tracking.uri={database}", "run_id=third"]
    with s3_servers.environment(s3_servers.free_port()):
        done = here("unlearn_imagenet", "quickstart", *own, *UNLEARN)
    assert (
        done.code == 1
        and f"could not look for {ROOT_URI}/lakes/digits/manifest.json: gave up after"
        in done.err.splitlines()[-1]
    )


def test_a_request_is_purged_from_the_bucket(server: s3_servers.Rclone, first: First, database: str) -> None:
    from pipeline.config import RegistryConfig, parse
    from pipeline.governance import purge

    tracking = {"uri": database, "model_name": MODEL}
    config = parse(
        RegistryConfig, {"storage": ROOT_URI, "request": first.result["request"]["id"], "tracking": tracking}
    )
    tombstone = purge.purge(config, purge.find(config))
    assert tombstone.count and purge.find(config).lines == []
    left = [str(path) for path in files(server.folder)]
    assert not [name for name in left if "/partitions/" in name or name.endswith("-00001.png")]
    assert [name for name in left if "mlartifacts" in name and name.endswith("-00007.png")]
