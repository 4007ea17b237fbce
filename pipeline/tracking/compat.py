"""What is used of MLflow beyond its documented interface: its SQL store, its artifact repositories, its
monitor of the machine, its switches. tests/tracking/test_mlflow_internals.py says what is lost without."""

import logging
import os
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

SYSTEM_S = 5  # seconds between two looks at processor, memory, disk, network and GPUs
SWITCHES = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # the address of a run, with the password that is in the tracking URI
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


def quiet() -> None:
    """Keep MLflow, its migrations and its usage reports quiet; errors still reach the terminal."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    import mlflow  # its import sets the levels of its loggers, so ours come after

    assert mlflow.__version__
    for name in ("mlflow", "alembic", "alembic.runtime.migration"):
        logging.getLogger(name).setLevel(logging.ERROR)


def preload() -> None:
    """Begin MLflow's imports in a thread: they take seconds, and whoever starts a cluster meanwhile is mostly
    waiting."""

    def imports() -> None:
        import mlflow.pyfunc
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    threading.Thread(target=imports, daemon=True, name="mlflow-imports").start()


def make_database(database: Path, artifacts: str) -> None:
    """Make MLflow's tables beside `database` and link the file into place: killed half-way, the migrations
    could never be finished."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    database.parent.mkdir(parents=True, exist_ok=True)
    temporary = database.with_name(f".{database.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        store = SqlAlchemyStore(f"sqlite:///{temporary}", artifacts)
        store.engine.dispose()
        os.link(temporary, database)
    except FileExistsError:  # another driver was first
        pass
    finally:
        temporary.unlink(missing_ok=True)


def artifact_repository(location: str) -> Any:
    """What keeps artifacts at `location`; its `delete_artifacts` removes one. Raises `InputError` where it is
    out of reach from here."""
    from importlib.util import find_spec

    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    if location.startswith("s3://") and find_spec("boto3") is None:
        raise InputError(
            f"storage: MLflow keeps artifacts at {location} through boto3, which is not installed; pip"
            " install boto3"
        )
    try:
        return get_artifact_repository(location)
    except MlflowException as error:
        raise InputError(
            f"storage: MLflow cannot keep artifacts at {location} ({error}); expected a folder, s3:// or"
            " gs://"
        ) from error


def watch_system(mlflow_run_id: str, uri: str) -> "SystemMetricsMonitor":
    """Record the load of this machine for the run, from a thread of MLflow's own; a continued run's steps go
    on."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(
        mlflow_run_id, sampling_interval=SYSTEM_S, resume_logging=True, tracking_uri=uri
    )
    monitor.start()
    return monitor
