"""What the submit helper decides and refuses before it asks any cluster, and what would be uploaded."""

import io
import logging
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from tests.cluster.local_head import free_port
from tests.cluster.manifests import CLUSTER, ROOT

QUICKSTART = ["--config", "jobs/configs/quickstart.yaml", "--storage", "/shared/unlearning"]
PLANTED = "planted-wJalrXUtnFEMI"


@pytest.fixture(scope="module")
def submit() -> Iterator[Any]:
    sys.path.insert(0, str(CLUSTER))
    import submit as module

    yield module
    sys.path.remove(str(CLUSTER))


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{free_port()}")


@pytest.fixture
def refused(submit: Any, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        assert submit.main([*arguments]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
        return said.err

    return run


def test_dry_run_prints_the_whole_call(submit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--tracking", "http://mlflow:5000", "--run-id", "forget-1-v1", "--set", "request.exchange={1: 7}"]
    assert submit.main([*QUICKSTART, *more, "--dry-run"]) == 0
    said = capsys.readouterr().out
    words = shlex.split(said)
    assert (
        words[:3] == ["ray", "job", "submit"]
        and f"--runtime-env-json {shlex.quote(words[words.index('--runtime-env-json') + 1])}" in said
    )
    entrypoint = words[words.index("--") + 1 :]
    assert entrypoint[:4] == [
        "python",
        "jobs/unlearn_imagenet.py",
        "--config",
        "jobs/configs/quickstart.yaml",
    ]
    sets = entrypoint[5::2]
    assert sets == [
        "request.exchange={1: 7}",
        "storage=/shared/unlearning",
        "tracking.uri=http://mlflow:5000",
        "run_id=forget-1-v1",
    ]
    metadata = submit.json.loads(words[words.index("--metadata-json") + 1])
    assert metadata["request_id"].startswith("digits-forget-1-")
    assert (metadata["run_id"], metadata["job"]) == ("forget-1-v1", "unlearn_imagenet")


def test_a_new_run_id_is_part_of_the_command(submit: Any) -> None:
    """So that sending the same command again continues the run."""
    made = [submit.prepare(submit.parser().parse_args(QUICKSTART)) for _ in range(2)]
    assert all(f"run_id={one.metadata['run_id']}" in one.entrypoint for one in made)
    assert made[0].metadata["run_id"] != made[1].metadata["run_id"] and made[0].job_id.startswith(
        made[0].metadata["run_id"]
    )


def test_the_address_that_is_given_beats_the_environments(
    submit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself takes the environment's before the one it is given."""
    import ray.job_submission

    seen = []
    monkeypatch.setattr(submit.socket, "create_connection", lambda *where, **options: io.BytesIO())
    monkeypatch.setattr(
        ray.job_submission,
        "JobSubmissionClient",
        lambda address: seen.append((address, os.environ["RAY_API_SERVER_ADDRESS"])),
    )
    submission = submit.prepare(submit.parser().parse_args([*QUICKSTART, "--address", "http://there:8265"]))
    submit.connect(submission.address)
    assert seen == [("http://there:8265", "http://there:8265")]


def test_every_job_is_known_or_refused(submit: Any) -> None:
    from pipeline.config import JobConfig
    from pipeline.errors import InputError

    for path in sorted((ROOT / "jobs").glob("*.py")):
        if path.stem in ("ledger", "registry"):  # verbs, done in seconds
            with pytest.raises(InputError, match="verb"):
                submit.configuration_of(path.stem)
        else:
            assert issubclass(submit.configuration_of(path.stem), JobConfig)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--config", "jobs/configs/quickstart.yaml"], "every node of the cluster reaches"),
        (
            ["--config", "jobs/configs/quickstart.yaml", "--storage", "./runs"],
            "every node of the cluster reaches",
        ),
        (["--config", "jobs/configs/absent.yaml", "--storage", "/x"], "is no file"),
        (["--config", "/etc/hosts", "--storage", "/x"], "lies outside"),
        ([*QUICKSTART, "--job", "nothing"], "expected one of"),
        ([*QUICKSTART, "--set", "opti.lr=1"], "unknown key 'opti'"),
        ([*QUICKSTART, "--set", "train.workers=3"], "expected a divisor"),
        ([*QUICKSTART, "--run-id", "no/slashes"], "run_id"),
        ([*QUICKSTART], "no token: RAY_AUTH_TOKEN is not set"),
    ],
)
def test_what_is_refused_before_anything_is_sent(
    refused: Callable[..., str], arguments: list[str], line: str
) -> None:
    assert line in refused(*arguments)


def test_a_configuration_that_is_not_uploaded_is_refused(
    submit: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / ".gitignore").write_text("runs/\n")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "runs/my.yaml").write_text((ROOT / "jobs/configs/quickstart.yaml").read_text())
    monkeypatch.setattr(submit, "CHECKOUT", tmp_path)
    with pytest.raises(InputError, match=r"runs/my\.yaml is not uploaded .*; copy it to jobs/configs/"):
        submit.inside_checkout("runs/my.yaml")
    shutil.copy(tmp_path / "runs/my.yaml", tmp_path / "my.yaml")
    assert submit.inside_checkout("my.yaml") == "my.yaml"


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:{port}", "127.0.0.1:{port}", "ray://127.0.0.1:{port}", "http://nowhere.invalid:8265"],
)
def test_addresses_where_nothing_answers(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", PLANTED)
    said = refused(*QUICKSTART, "--address", address.format(port=free_port()))
    assert "--address: " in said and "expected" in said and PLANTED not in said


def test_no_secret_leaves_on_the_command_line(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PLANTED)
    for arguments in (
        ["--tracking", "http://op:hunter2@mlflow:5000"],
        ["--set", f"request.reason={PLANTED}"],
    ):
        said = refused(*QUICKSTART, *arguments)
        assert (
            "carries a password or another secret" in said and PLANTED not in said and "hunter2" not in said
        )
    for variable, value in (("AWS_SECRET_ACCESS_KEY", "x"), ("HARMLESS", f"a {PLANTED}")):
        path = tmp_path / "env.yaml"
        path.write_text(f"env_vars: {{{variable}: {value}}}\n")
        said = refused(*QUICKSTART, "--runtime-env", str(path))
        assert "the dashboard would show" in said and PLANTED not in said


def test_the_upload_is_small_and_whole(tmp_path: Path) -> None:
    """A checkout with a virtual environment, a storage root, caches and a repository beside the code."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    checkout = tmp_path / "checkout"
    shutil.copytree(
        ROOT,
        checkout,
        ignore=lambda folder, names: {
            *shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "*.egg-info")(folder, names),
            *({"runs"} if Path(folder) == ROOT else ()),
        },
    )
    heavy = b"\0" * (3 << 20)
    for place in (
        ".venv/lib/torch.so",
        "runs/models/m/model.safetensors",
        ".git/objects/pack/p.pack",
        ".mypy_cache/x",
        "docs/y.png",
    ):
        path = checkout / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(heavy)
    (checkout / "runs" / "mlflow.db").write_bytes(heavy)
    package = tmp_path / "package.zip"
    logging.getLogger("ray").setLevel(logging.ERROR)
    create_package(
        str(checkout), package, include_gitignore=True, excludes=get_runtime_env_default_excludes()
    )
    names = set(zipfile.ZipFile(package).namelist())
    assert package.stat().st_size < 3 << 20
    tops = {name.split("/")[0] for name in names}
    assert {"jobs", "models", "pipeline"} <= tops and not {".venv", "runs", ".git", "tests", "docs"} & tops
    code = {
        path.relative_to(ROOT).as_posix()
        for top in ("jobs", "models", "pipeline")
        for path in (ROOT / top).rglob("*.py")
    }
    assert code <= names, "every module goes along"
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "jobs/configs").iterdir()} <= names
