"""What is used of Ray beyond its documented interface is still there; no cluster is started."""

import inspect
import signal
import socket
import stat
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config import PrepareConfig
from pipeline.runtime import command_line, compat_ray, stop_request


def test_ray_data_has_the_switches() -> None:
    """Otherwise: progress bars between a job's lines, and a reader that loses rows of a path listed twice."""
    from ray.data import DataContext

    compat_ray.quiet_data()
    context = DataContext.get_current()
    fresh = DataContext()
    for name in ("enable_progress_bars", "use_datasource_v2", "print_on_execution_start"):
        assert hasattr(fresh, name), name
        assert getattr(context, name) is False, name


def test_a_worker_can_ask_whether_its_node_is_taken_away() -> None:
    """Otherwise: a run on spot machines loses what came after its last checkpoint."""
    from ray.train.v2._internal.execution import context

    source = inspect.getsource(context)
    assert "preemption_context" in source and callable(context.get_train_context)
    with pytest.raises(RuntimeError):  # no worker here
        compat_ray.preemption_context()


def test_session_and_token_are_closed_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise: whoever is on the machine reads the logs and speaks to the cluster."""
    import ray._private.worker as worker
    from ray._private.node import Node

    session, token = tmp_path / "session", tmp_path / ".ray" / "auth_token"
    for folder in (session, token.parent):
        folder.mkdir(mode=0o777)
    token.write_text("secret")
    token.chmod(0o644)
    assert hasattr(Node, "get_session_dir_path") and hasattr(worker, "_global_node")
    node = SimpleNamespace(get_session_dir_path=lambda: str(session))
    monkeypatch.setattr(worker, "_global_node", node)
    monkeypatch.setenv("HOME", str(tmp_path))
    compat_ray.keep_private()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (session, token)] == [0o700, 0o600]
    token.unlink()
    compat_ray.keep_private()  # a cluster without a token


def test_a_local_cluster_starts_without_what_it_does_not_need() -> None:
    """Otherwise: a second more of two cores before the first step."""
    from ray._private.node import Node

    kept, dropped = "start_raylet", ["start_monitor", "start_log_monitor", "start_api_server"]
    before = {name: getattr(Node, name) for name in [kept, *dropped]}
    with compat_ray.without_helpers(dashboard=False):
        assert [name for name in before if getattr(Node, name) is not before[name]] == dropped
    with compat_ray.without_helpers(dashboard=True):
        assert Node.start_api_server is before["start_api_server"]
    assert before == {name: getattr(Node, name) for name in before}


def test_ray_train_can_be_controlled_from_the_driver() -> None:
    """Otherwise: five processes more, one after the other, before the workers begin. What is replaced is
    there, and called as before."""
    from ray.train.v2._internal.execution.worker_group import WorkerGroup
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from pipeline.runtime import compat_train_ray

    given = set(inspect.signature(RayTrainWorker.init_train_context).parameters)
    sent = inspect.getsource(WorkerGroup._init_train_context_on_workers)
    ours = inspect.getsource(compat_train_ray._Group._init_train_context_on_workers)
    names = {name for name in given if f"{name}=" in sent}
    assert {"controller_actor", "synchronization_actor"} <= names == {n for n in given if f"{n}=" in ours}
    for name in ("_create_default_callbacks", "_initialize_and_run_controller"):
        assert hasattr(DataParallelTrainer, name), name
    assert inspect.iscoroutinefunction(compat_train_ray.TrainController.run)


@pytest.mark.parametrize(
    ("names", "module", "lost"),
    [
        (compat_ray.TRAIN.values(), "ray.train.v2._internal.constants", "a dead worker is noticed late"),
        (
            ["TUNE_PRINT_ALL_TRIAL_ERRORS", "TUNE_DISABLE_SIGINT_HANDLER"],
            "ray.tune",
            "Ctrl-C ends a sweep as if it were finished",
        ),
    ],
)
def test_the_environment_is_still_read(names: list[str], module: str, lost: str) -> None:
    import importlib

    found = importlib.import_module(module)
    assert found.__file__ is not None
    here = Path(found.__file__)
    files = here.parent.rglob("*.py") if here.name == "__init__.py" else [here]
    text = "".join(path.read_text() for path in files)
    assert [name for name in names if name not in text] == [], lost


def test_what_answers_at_an_address_and_is_no_head_is_said_at_once() -> None:
    """Ray itself asks it for minutes."""
    from concurrent.futures import ThreadPoolExecutor

    from pipeline.errors import InputError
    from pipeline.runtime import cluster_ray

    def answer(server: socket.socket, said: bytes) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(99)
            connection.sendall(said)

    grpc = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # a settings frame
    for said, refused in ((b"HTTP/1.1 505 no", True), (b"", True), (grpc, False)):
        with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as threads:
            threads.submit(answer, server, said)
            address = f"127.0.0.1:{server.getsockname()[1]}"
            with pytest.raises(InputError, match="does not speak gRPC") if refused else nullcontext():
                cluster_ray._require_answer(address)


def test_a_local_job_joins_no_head_that_is_only_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that was killed leaves its address behind, where `ray.init()` would look."""
    from pipeline.runtime import cluster_ray

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(cluster_ray.ray, "init", lambda **options: asked.append(options))
    monkeypatch.setattr(cluster_ray.compat_ray, "keep_private", lambda: None)
    cluster_ray._start(num_cpus=1)
    assert asked == [{"address": "local", "num_cpus": 1}]


def test_a_blocking_call_that_made_an_exit_of_its_own_of_the_signal_still_ends_with_143(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray's `wait` and `get` make a SystemExit of code 1 of whatever a signal handler raises in them."""

    def told(config: PrepareConfig, dry_run: bool) -> None:
        with suppress(SystemExit):
            stop_request.raise_terminated(signal.SIGTERM, None)
        raise SystemExit(1)

    monkeypatch.setattr(stop_request.Terminated, "happened", False)
    digits = Path(__file__).parents[2] / "jobs/configs/prepare_digits.yaml"
    with pytest.raises(SystemExit) as left:
        command_line.main(PrepareConfig, told, "a job", argv=["--config", str(digits)])
    assert left.value.code == stop_request.TERMINATED
