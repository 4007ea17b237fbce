"""What is used of MLflow beyond its documented interface still does what is needed of it."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.tracking import compat


def test_a_database_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """Otherwise: a job that is killed while it makes mlflow.db leaves one that no job can use."""
    compat.quiet()
    compat.make_database(tmp_path / "mlflow.db", str(tmp_path))
    compat.make_database(tmp_path / "mlflow.db", str(tmp_path))  # another driver was first
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert [found.name for found in client.search_experiments()] == ["Default"]


def test_an_artifact_can_be_deleted(tmp_path: Path) -> None:
    """Otherwise: a purge leaves the pictures that MLflow keeps."""
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "before-00001.png").write_bytes(b"x")
    compat.artifact_repository(str(tmp_path)).delete_artifacts("samples/before-00001.png")
    assert list(tmp_path.rglob("*.png")) == []
    with pytest.raises(InputError, match="MLflow cannot keep artifacts at nowhere://x"):
        compat.artifact_repository("nowhere://x")


def test_the_machine_is_watched_for_a_run_that_goes_on() -> None:
    """Otherwise: runs have no system metrics, or a continued run's start at step 0 again."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    known = inspect.signature(SystemMetricsMonitor).parameters
    assert {"run_id", "sampling_interval", "resume_logging", "tracking_uri"} <= known.keys()
    assert callable(SystemMetricsMonitor.start) and callable(SystemMetricsMonitor.finish)


def test_mlflow_has_the_switches() -> None:
    """Otherwise: MLflow reports usage, or prints tracking URIs with their passwords."""
    import mlflow.environment_variables as known

    for name in compat.SWITCHES:
        assert name.startswith("GIT_") or hasattr(known, name), name


def test_it_is_imported_beside_the_work() -> None:
    """Otherwise: a job waits seconds for MLflow after its cluster is up."""
    code = (
        "import sys, threading\nfrom pipeline.tracking import compat\ncompat.preload()\n"
        "[t.join() for t in threading.enumerate() if t.name == 'mlflow-imports']\n"
        "assert 'mlflow.store.tracking.sqlalchemy_store' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])
