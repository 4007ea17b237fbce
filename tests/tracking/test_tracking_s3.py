"""The registry with its storage in a bucket and its database elsewhere."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import s3_servers

pytest.importorskip("moto")

from pipeline import storage
from pipeline.config import RegistryConfig, Tracking, parse
from pipeline.errors import InputError
from pipeline.governance import promotion, verification
from pipeline.tracking import alias_log, registry
from pipeline.tracking.mlflow_runs import Tracker, client


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An S3 server in this process that honours conditional puts."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with s3_servers.environment(port):
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("registry")
        yield "s3://registry/runs"
    server.stop()


def test_register_promote_verify_load(bucket: str, tmp_path: Path) -> None:
    import numpy as np
    import pandas as pd
    from tracking_samples import result_json, write_model

    tracking = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db", model_name="remote")
    for number in (1, 2):
        run_id = f"run-{number}"
        folder = storage.join(bucket, "weights", run_id)
        result = result_json(run_id, write_model(folder, seed=number))
        storage.write_json(storage.join(bucket, "runs", run_id, "result.json"), result)
        storage.write_text(storage.join(bucket, "runs", run_id, "config.yaml"), "seed: 0\n")
        with Tracker(tracking=tracking, storage_root=bucket, run_id=run_id) as tracker:
            assert registry.register(tracker, folder=folder, image_shape=(8, 8, 1), result=result) == number
    config = parse(
        RegistryConfig,
        {"storage": bucket, "tracking": {"uri": tracking.uri, "model_name": tracking.model_name}},
    )
    assert promotion.promote(config)[0] == 2 and len(verification.verify(config)) == 6
    version = registry.resolve(tracking, bucket, "champion")
    assert version.source.startswith("s3://registry/")
    images = registry.load_version(tracking, bucket, version).predict(
        pd.DataFrame({"label": [1], "seed": [0]})
    )
    assert images.shape == (1, 8, 8, 1) and images.dtype == np.uint8

    made = client(tracking, bucket)
    seen = alias_log.follow_log(made, bucket, "remote")
    alias_log.change(made, bucket, "remote", seen, action="promote", alias="champion", version=1)
    with pytest.raises(InputError, match="came first"):
        alias_log.change(made, bucket, "remote", seen, action="promote", alias="champion", version=2)
    where = storage.join(alias_log.folder(bucket, "remote"), "log", alias_log.file_name(len(seen) + 1))
    # the other's entry is not listed yet when we look: the store itself refuses
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "exists", lambda uri: False)
        assert not storage.create(where, b"another")
    assert len(promotion.history(config).entries) == len(seen) + 1


@pytest.mark.parametrize(
    "kind", ["closed", "upload failed", "busy listing", "refused"], ids=lambda kind: kind.replace(" ", "-")
)
def test_artifacts_get_the_patience_of_every_other_object(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import ClientError, ConnectionClosedError
    from mlflow.exceptions import MlflowException

    from pipeline.retries import StorageError
    from pipeline.tracking import artifact_store

    busy = {"Error": {"Code": "503", "Message": "Service Unavailable"}}
    error = {
        "closed": ConnectionClosedError(endpoint_url="http://store"),
        "upload failed": S3UploadFailedError(f"Failed to upload x: {ClientError(busy, 'PutObject')}"),
        "busy listing": MlflowException("Failed to list artifacts in s3://b/x: Service Unavailable"),
        "refused": MlflowException(
            "An error occurred (404) when calling the HeadObject operation: Not Found"
        ),
    }[kind]
    tries: list[str] = []

    class Run:
        info = type("Info", (), {"artifact_uri": "s3://b/x"})

    class Client:
        def get_run(self, run_id: str) -> type[Run]:
            return Run

        def log_artifacts(self, run_id: str, folder: str) -> None:
            tries.append(folder)
            if len(tries) < 3:
                raise error

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    if kind == "refused":
        with pytest.raises(MlflowException, match="404"):
            artifact_store.upload(Client(), "run", "folder")  # type: ignore[arg-type]
        assert len(tries) == 1
        return
    artifact_store.upload(Client(), "run", "folder")  # type: ignore[arg-type]
    assert len(tries) == 3
    tries.clear()
    monkeypatch.setenv("UNLEARN_STORAGE_PATIENCE_S", "0")
    with pytest.raises(StorageError, match="could not write s3://b/x: gave up"):
        artifact_store.upload(Client(), "run", "folder")  # type: ignore[arg-type]
