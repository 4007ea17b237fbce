"""What is used of Ray beyond its documented interface: private modules, switches of contexts and of the
environment. tests/runtime/test_ray_internals.py says which feature is lost when one of them moves."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray.data import DataContext

TRAIN = {
    "poll_s": "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S",
    "start_s": "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S",
    "watch_nodes": "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER",
}
PRELOAD = "RAY_preload_python_modules"  # of a cluster: what each of its processes imports as it starts
TUNE = {
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupted sweep is not one that ended early
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def quiet_data() -> None:
    """Ray Data without progress bars and chatter in this process; errors still show."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    # the newer reader is slow to its first batch and loses rows of a path listed twice
    context.use_datasource_v2 = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@contextlib.contextmanager
def without_helpers(*, dashboard: bool) -> Iterator[None]:
    """Within it a local cluster starts without the autoscaler, which could start nothing, and without what
    follows its workers' logs for drivers that show them; without a dashboard also without its server."""
    from ray._private.node import Node

    names = ["start_monitor", "start_log_monitor", *([] if dashboard else ["start_api_server"])]
    before = {name: getattr(Node, name) for name in names}
    for name in names:
        setattr(Node, name, lambda self, **options: None)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


def keep_private() -> None:
    """Close the folder of the session that this process started, logs and sockets, and the token that Ray
    made for the user, to everybody else: Ray leaves both open to all on the machine."""
    from ray._private.worker import _global_node

    assert _global_node is not None
    Path(_global_node.get_session_dir_path()).chmod(0o700)
    token = Path.home() / ".ray" / "auth_token"
    if token.is_file() and token.stat().st_uid == os.getuid():
        token.chmod(0o600)


def quiet_tune() -> None:
    """Ray Tune says nothing of its own, and leaves Ctrl-C to this process."""
    for name, value in TUNE.items():
        os.environ.setdefault(name, value)
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.ERROR)


def set_up_train(*, poll_s: float, start_s: float, watch_nodes: bool) -> None:
    """How often Ray Train looks at its workers, how long it waits for them to start, whether it watches for
    nodes that are taken away."""
    os.environ.setdefault(TRAIN["poll_s"], str(poll_s))
    os.environ.setdefault(TRAIN["start_s"], str(start_s))
    if not watch_nodes:
        os.environ.setdefault(TRAIN["watch_nodes"], "0")


def preemption_context() -> Any:
    """On a Ray Train worker: its `preemption_info` names the ranks whose nodes are taken away, from memory.
    The public call is a round trip over all ranks."""
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context
