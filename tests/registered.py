"""One MLflow database for a module (its first use takes seconds) and a tiny model to register in it."""

from collections.abc import Callable

import pytest
from tracking_samples import result_json, write_model

from pipeline import storage
from pipeline.config import Tracking


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="module")
def register_run(root: str) -> Callable[..., int]:
    """Registers run `run_id` of model `name` with weights of their own and leaves its result.json; the
    version's number."""
    from pipeline.tracking import registry
    from pipeline.tracking.mlflow_runs import Tracker

    def register(name: str, run_id: str, *, passed: bool = True, value: float = 0.004) -> int:
        folder = storage.join(root, "weights", run_id)
        digest = write_model(folder, seed=len(run_id))
        result = result_json(run_id, digest, passed=passed, value=value)
        storage.write_text(storage.join(root, "runs", run_id, "config.yaml"), f"run_id: {run_id}\n")
        tracking = Tracking(model_name=name)
        with Tracker(tracking=tracking, storage_root=root, run_id=run_id) as tracker:
            version = registry.register(tracker, folder=folder, image_shape=(8, 8, 1), result=result)
        storage.write_json(storage.join(root, "runs", run_id, "result.json"), result)
        return version

    return register
