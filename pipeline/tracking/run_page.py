"""What MLflow's own pages show of a run beside its numbers: who made it and with what, in words, from which
data sets, and which model came of it."""

import getpass
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.redaction import redact
from pipeline.runtime.code_version import code_version
from pipeline.tracking import artifact_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

CHECKOUT = Path(__file__).resolve().parents[2]
VERSIONS = "mlflow.modelVersions"  # tag of a logged model
DIGEST = 36  # characters of a data set's digest that MLflow keeps
FINAL = (
    "forget_fraction",
    "exchange_fraction",
    "retain_accuracy",
    "fid",
    "membership",
)  # of a version's page


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Rows that a run reads: in MLflow a data set with `digest` (its first 36 characters), and `context` what
    for."""

    name: str
    digest: str
    uri: str
    rows: int | None = None
    context: str = "training"


def origin(description: str = "") -> dict[str, str]:
    """Tags that MLflow shows as created by, source, version and description."""
    script, code = Path(sys.argv[0] or "python").resolve(), code_version()
    inside = script.is_relative_to(CHECKOUT)
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": script.relative_to(CHECKOUT).as_posix() if inside else script.name,
        "mlflow.source.type": "JOB" if os.environ.get("RAY_ADDRESS") else "LOCAL",
    }
    return (
        tags
        | ({"mlflow.source.git.commit": code} if code else {})
        | ({"mlflow.note.content": redact(description)} if description else {})
    )


def log_datasets(mlflow: "MlflowClient", mlflow_run_id: str, datasets: Sequence[DataSet]) -> None:
    """Note `datasets` as the run's inputs; those it has already stay as they are."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = [
        DatasetInput(
            dataset=Dataset(
                name=one.name,
                digest=one.digest[:DIGEST],
                source_type="uri",
                source=json.dumps({"uri": redact(one.uri), "digest": one.digest}),
                profile=None if one.rows is None else json.dumps({"num_rows": one.rows}),
            ),
            tags=[InputTag("mlflow.data.context", one.context)],
        )
        for one in datasets
    ]
    if inputs:
        mlflow.log_inputs(mlflow_run_id, inputs)


def logged_model(mlflow: "MlflowClient", mlflow_run_id: str, name: str, local_folder: str) -> "LoggedModel":
    """The run's logged model, its files those of `local_folder`. Of one that an interrupted call left all are
    written again, whole or not: each call saves other times, and what is registered is this call's digest."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    model = _model_of(mlflow, mlflow_run_id)
    if model is None:
        experiment = mlflow.get_run(mlflow_run_id).info.experiment_id
        model = mlflow.create_logged_model(
            experiment, name=name, source_run_id=mlflow_run_id, model_type="pyfunc"
        )
        mlflow.log_outputs(mlflow_run_id, [LoggedModelOutput(model.model_id, step=0)])
    artifact_store.upload_model(mlflow, model, local_folder)
    return mlflow.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def link_version(
    mlflow: "MlflowClient", mlflow_run_id: str, name: str, version: int, result: Mapping[str, Any]
) -> None:
    """Lead from the run's logged model to its registered version, and give it the final metrics of `result`.

    Nothing is done twice, nor for a run whose version was registered from its own artifacts.
    """
    from mlflow.entities import Metric

    model = _model_of(mlflow, mlflow_run_id)
    if model is None:
        return
    versions = json.dumps([{"name": name, "version": version}])
    if model.tags.get(VERSIONS) != versions:
        mlflow.set_logged_model_tags(model.model_id, {VERSIONS: versions})
    now, step = int(time.time() * 1000), int(result.get("steps") or 0)
    metrics = [
        Metric(f"after/{key}", value, now, step, model_id=model.model_id)
        for key, value in final_metrics(result.get("after") or {})
    ]
    if metrics and not model.metrics:
        mlflow.log_batch(mlflow_run_id, metrics=metrics)


def _model_of(mlflow: "MlflowClient", mlflow_run_id: str) -> "LoggedModel | None":
    experiment = mlflow.get_run(mlflow_run_id).info.experiment_id
    models = mlflow.search_logged_models([experiment], filter_string=f"source_run_id = '{mlflow_run_id}'")
    return models[0] if models else None


def final_metrics(after: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Names and values of an `after` block of result.json."""
    for name in FINAL:
        block = after.get(name)
        if not isinstance(block, Mapping):
            continue
        for key, value in block.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                yield (name if key == "value" else f"{name}/{key}"), float(value)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
