"""A Ray session for a module, and one digits lake for all tests of the data plane."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def ray_session() -> None:
    from pipeline.runtime import cluster_ray

    cluster_ray.connect(cpus=2)


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A storage root with the digits lake, made shard by shard in this process."""
    from pipeline.config import PrepareConfig, parse
    from pipeline.data import ingest, ingest_ray

    root = str(tmp_path_factory.mktemp("digits"))
    config = parse(PrepareConfig, {"storage": root, "prepare": {"size": 8, "channels": 1}})
    ingest_ray.prepare(config, run=lambda tasks: map(ingest.make_shard, tasks))
    return root


@pytest.fixture
def digits_lake(digits_root: str) -> Any:
    from pipeline.data.lake import lake_uri, read_lake

    return read_lake(lake_uri(digits_root, "digits"))


@pytest.fixture
def unlearn_config(digits_root: str, tmp_path: Path) -> Callable[..., Any]:
    """A small request against the digits lake; keyword arguments replace whole sections."""
    from pipeline.config import UnlearnConfig, parse

    def make(**sections: Any) -> UnlearnConfig:
        values = {
            "storage": str(tmp_path / "runs"),
            "lake": digits_root + "/lakes/digits",
            "request": {"classes": [1], "exchange": {1: 7}},
            "partition": {"lanes": 4, "segment_steps": 8},
            "optim": {"batch_size": 64, "max_steps": 44},
            **sections,
        }
        return parse(UnlearnConfig, values)

    return make
