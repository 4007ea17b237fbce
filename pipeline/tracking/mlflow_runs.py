"""One MLflow run per job, owned by the driver: parameters, metrics in batches, artifacts, an honest status at
the end."""

import math
import numbers
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.config import Registry, Tracking
from pipeline.config.commands import command
from pipeline.errors import InputError
from pipeline.redaction import redact
from pipeline.tracking import artifact_store, compat
from pipeline.tracking.moved_root import ARTIFACTS, follow_root
from pipeline.tracking.run_page import DataSet, log_datasets, origin

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_ID_TAG = "run_id"  # our run's name among MLflow's own ids: what makes a continued run find its MLflow run
BATCH = 1000  # metrics of one log_batch request: MLflow's own limit
PARAMS = 100  # parameters of one request: MLflow's own limit


def tracking_uri(tracking: Registry, storage_root: str) -> str:
    """Where runs and versions are recorded: `tracking.uri`, else a SQLite file under a
    local `storage_root`."""
    if tracking.uri:
        return tracking.uri
    if not storage.is_local(storage_root):
        raise InputError(
            f"tracking.uri: got none with storage {storage_root!r}, expected an MLflow server or database,"
            " since no database file lives in a bucket; pass --set tracking.uri=http://host:5000 or --set"
            " tracking.uri=sqlite:////absolute/path/mlflow.db"
        )
    if re.search(r"\?|%[0-9A-Fa-f]{2}", storage_root):  # no part of a path in a URI of a database
        raise InputError(
            f"storage: got {storage_root!r}, expected a folder without ? and %-codes in its path: MLflow's"
            " database would lie elsewhere; rename it, or pass --set tracking.uri=<an MLflow server>"
        )
    return f"sqlite:///{storage.join(storage_root, 'mlflow.db')}"


def artifact_location(tracking: Registry, storage_root: str) -> str | None:
    """Where a new experiment keeps its artifacts: under the storage root, or (None, for a server beside local
    storage) where it likes."""
    if (
        tracking.uri
        and tracking.uri.startswith(("http://", "https://", "databricks"))
        and storage.is_local(storage_root)
    ):
        return None
    return storage.join(storage_root, ARTIFACTS)


def client(tracking: Registry, storage_root: str, *, create: bool = True) -> "MlflowClient":
    """A client bound to the store of `tracking`; raises `InputError` when the store does not answer.

    `create=False`: a database file that does not exist yet is an `InputError` too, and none is made.

    Nothing global is set, apart from keeping MLflow off the terminal and off the network (no usage reports).
    """
    uri = tracking_uri(tracking, storage_root)
    database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
    if database is not None and not database.is_file():
        if not create:
            raise InputError(
                f"nothing is registered yet: {database} does not exist; run"
                f" `{command('unlearn_imagenet', 'jobs/configs/<job>.yaml', storage_root)}` first, or check"
                " storage and tracking.uri"
            )
        compat.quiet()
        local = storage.is_local(storage_root)
        artifacts = storage.join(storage_root, ARTIFACTS) if local else str(database.parent)
        compat.make_database(database, artifacts)
    compat.quiet()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        mlflow_client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        mlflow_client.search_experiments(max_results=1)
        if database is not None and str(database.resolve().parent) == storage_root:
            follow_root(database, storage.join(storage_root, ARTIFACTS))
    except (MlflowException, OSError) as error:
        raise InputError(
            f"tracking.uri: {redact(uri)!r} does not answer as an MLflow store ({type(error).__name__}:"
            f" {redact(str(error))[:200]}); expected sqlite:////path/mlflow.db or http://host:5000"
        ) from error
    return mlflow_client


def find_experiment(mlflow_client: "MlflowClient", tracking: Tracking, storage_root: str) -> str:
    """The id of the experiment `tracking.experiment`, created if need be."""
    from mlflow.exceptions import MlflowException

    experiment = mlflow_client.get_experiment_by_name(tracking.experiment)
    if experiment is None:
        location = artifact_location(tracking, storage_root)
        if location is not None:
            compat.artifact_repository(location)
        try:
            return str(mlflow_client.create_experiment(tracking.experiment, artifact_location=location))
        except MlflowException:  # another driver made it in between
            experiment = mlflow_client.get_experiment_by_name(tracking.experiment)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise InputError(
            f"tracking.experiment: {tracking.experiment!r} was deleted; restore it or pass --set"
            " tracking.experiment=<name>"
        )
    return str(experiment.experiment_id)


def find_run(mlflow_client: "MlflowClient", experiment_id: str, run_id: str) -> str | None:
    """MLflow's id of the run tagged with our `run_id`, or None."""
    runs = mlflow_client.search_runs(
        [experiment_id],
        filter_string=f"tags.{RUN_ID_TAG} = '{run_id}'",
        max_results=1,
        order_by=["start_time ASC"],
    )
    return str(runs[0].info.run_id) if runs else None


class Tracker:
    """The driver's hold on one MLflow run. Entering with a known `run_id` continues that run.

    `system`: while it is entered, the machine's load is recorded beside the run's own metrics, as
    `system/...`. `description` and `datasets` are for MLflow's page of the run.

    The status on leaving is FINISHED, KILLED (interrupted) or FAILED (any other exception, which goes on).
    """

    def __init__(
        self,
        *,
        tracking: Tracking,
        storage_root: str,
        run_id: str,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        system: bool = False,
        description: str = "",
        datasets: Sequence[DataSet] = (),
    ) -> None:
        self.tracking, self.storage_root, self.run_id = tracking, storage_root, run_id
        self.name, self.tags, self.params = name or run_id, dict(tags or {}), dict(params or {})
        self.mlflow_run_id = ""
        self._system, self._description, self._datasets = system, description, tuple(datasets)
        self._continued = False
        self._steps: dict[str, set[int]] = {}  # the steps of each metric that MLflow has

    def __enter__(self) -> "Tracker":
        self.client = client(self.tracking, self.storage_root)
        experiment = find_experiment(self.client, self.tracking, self.storage_root)
        tags = {**origin(self._description), **environment(), **self.tags}
        earlier = find_run(self.client, experiment, self.run_id)
        if earlier is None:
            run = self.client.create_run(
                experiment,
                run_name=self.name,
                tags={RUN_ID_TAG: self.run_id, **_texts(tags)},
            )
            self.mlflow_run_id = str(run.info.run_id)
        else:
            self.mlflow_run_id, self._continued = earlier, True
            self.client.update_run(earlier, status="RUNNING")
            self.set_tags(tags)
        self.log_datasets(self._datasets)
        self._log_params()
        uri = tracking_uri(self.tracking, self.storage_root)
        self._monitor = compat.watch_system(self.mlflow_run_id, uri) if self._system else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._monitor is not None:
            self._monitor.finish()
        if kind is None:
            status = "FINISHED"
        elif issubclass(kind, KeyboardInterrupt | SystemExit):
            status = "KILLED"
        else:
            status = "FAILED"
        self.client.set_terminated(self.mlflow_run_id, status=status)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(
            self.mlflow_run_id, tags=[RunTag(key, value) for key, value in _texts(tags).items()]
        )

    def log_datasets(self, datasets: Sequence[DataSet]) -> None:
        log_datasets(self.client, self.mlflow_run_id, datasets)

    def log_records(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Log records of metrics.jsonl, both kinds: every number under its own name at the record's step;
        texts and nulls are left out.

        An evaluation's `seconds` becomes `evaluation/seconds`, since a step has `seconds` too. A run that was
        taken back to a checkpoint, or continued, may hand in the same steps again: the first value stays,
        none is logged twice.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, step)
            for name, value, step in _numbers(records)
            if self._is_new(name, step)
        ]
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(self.mlflow_run_id, metrics=metrics[start : start + BATCH])

    def log_artifacts(self, files: Mapping[str, bytes]) -> None:
        """Keep `files` (name to content) as the run's artifacts, such as `report.html` or
        `samples/after.png`."""
        with tempfile.TemporaryDirectory() as folder:
            for name, data in files.items():
                target = Path(folder) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            artifact_store.upload(self.client, self.mlflow_run_id, folder)

    def _is_new(self, name: str, step: int) -> bool:
        if name not in self._steps:
            there = self.client.get_metric_history(self.mlflow_run_id, name) if self._continued else []
            self._steps[name] = {metric.step for metric in there}
        is_new = step not in self._steps[name]
        self._steps[name].add(step)
        return is_new

    def _log_params(self) -> None:
        """MLflow's parameters never change, so a continued run keeps its first ones and a tag says which
        differ now."""
        from mlflow.entities import Param

        values = {_legal(key): redact(str(value)) for key, value in self.params.items()}
        there = self.client.get_run(self.mlflow_run_id).data.params if self._continued else {}
        missing = [Param(key, value) for key, value in values.items() if key not in there]
        for start in range(0, len(missing), PARAMS):
            self.client.log_batch(self.mlflow_run_id, params=missing[start : start + PARAMS])
        changed = {key: value for key, value in values.items() if key in there and there[key] != value}
        if changed:
            self.set_tags(
                {
                    "params_on_continuing": "; ".join(
                        f"{key}={value}" for key, value in sorted(changed.items())
                    )
                }
            )


def environment() -> dict[str, str]:
    """What the job runs on, as tags of its run: interpreter, machine, the versions that decide what comes
    out."""
    from importlib.metadata import PackageNotFoundError, version

    tags = {
        "env.python": platform.python_version(),
        "env.machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
    }
    for package in ("torch", "ray", "mlflow", "numpy", "pyarrow"):
        try:
            tags[f"env.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return tags


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as `a.b: value`, the shape MLflow's parameters have."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _numbers(records: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, float, int]]:
    for record in records:
        step = int(record["step"])
        for key, value in record.items():
            if key in ("kind", "step") or isinstance(value, bool) or not isinstance(value, numbers.Real):
                continue
            name = (
                "evaluation/seconds"
                if key == "seconds" and record.get("kind") == "evaluation"
                else _legal(key)
            )
            if not math.isnan(float(value)):
                yield name, float(value), step


def _legal(name: str) -> str:
    return re.sub(r"[^\w\-./ :]", "_", name)


def _texts(tags: Mapping[str, Any]) -> dict[str, str]:
    return {key: "" if value is None else redact(str(value)) for key, value in tags.items()}
