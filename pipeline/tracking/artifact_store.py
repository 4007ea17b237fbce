"""MLflow's artifacts where they lie in an object store: written, listed and fetched with the patience that
every other object gets (`pipeline.retries`); the S3 client under MLflow gives up after seconds."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from pipeline.retries import retrying
from pipeline.tracking import compat
from pipeline.uris import is_local

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import FileInfo, LoggedModel

PASSING = (
    "Connection was closed",
    "Could not connect to the endpoint",
    "timeout on endpoint",
    "Connection broken",
    "IncompleteRead",
    "An error occurred (50",  # 500 to 504, by a code that is a number
    "SlowDown",
    "ServiceUnavailable",
    "Service Unavailable",
    "InternalError",
)  # how botocore words what passes; MLflow and s3transfer keep the words and lose the error's kind
ResultT = TypeVar("ResultT")


def upload(mlflow: "MlflowClient", mlflow_run_id: str, folder: str) -> None:
    """Keep the files below `folder` as the run's artifacts; what is there under the same name is replaced."""
    uri = mlflow.get_run(mlflow_run_id).info.artifact_uri
    _patiently(uri, "write", lambda: mlflow.log_artifacts(mlflow_run_id, folder))


def write_text(mlflow: "MlflowClient", mlflow_run_id: str, name: str, text: str) -> None:
    """Keep `text` as the run's artifact `name`."""
    uri = mlflow.get_run(mlflow_run_id).info.artifact_uri
    _patiently(uri, "write", lambda: mlflow.log_text(mlflow_run_id, text, name))


def upload_model(mlflow: "MlflowClient", model: "LoggedModel", folder: str) -> None:
    """Keep the files below `folder` as the logged model's; what is there under the same name is replaced."""
    _patiently(model.artifact_location, "write", lambda: mlflow.log_model_artifacts(model.model_id, folder))


def listing(mlflow: "MlflowClient", mlflow_run_id: str, path: str | None = None) -> "list[FileInfo]":
    """The run's artifacts in its folder `path`."""
    uri = mlflow.get_run(mlflow_run_id).info.artifact_uri
    return _patiently(uri, "list", lambda: list(mlflow.list_artifacts(mlflow_run_id, path)))


def download(uri: str, tracking_uri: str) -> str:
    """A local folder with the files of `uri`."""
    import mlflow.artifacts

    return _patiently(
        uri,
        "read",
        lambda: str(mlflow.artifacts.download_artifacts(artifact_uri=uri, tracking_uri=tracking_uri)),
    )


def remove(mlflow: "MlflowClient", mlflow_run_id: str, path: str) -> None:
    """Delete one artifact of the run."""
    uri = mlflow.get_run(mlflow_run_id).info.artifact_uri
    _patiently(uri, "remove", lambda: compat.artifact_repository(uri).delete_artifacts(path))


def _patiently(uri: str, action: str, call: Callable[[], ResultT]) -> ResultT:
    if is_local(uri):
        return call()  # spares the imports of an S3 client
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import ClientError
    from mlflow.exceptions import MlflowException

    def tried() -> ResultT:
        try:
            return call()
        except (ClientError, MlflowException, S3UploadFailedError) as error:
            if any(words in str(error) for words in PASSING):
                raise ConnectionError(str(error)) from error
            raise

    return retrying(uri, action, tried)
