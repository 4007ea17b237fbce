"""The data benchmark on the smallest sizes: every figure is there, and nothing is left behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.benchmarks import data
from pipeline.config import BenchmarkConfig, parse


@pytest.fixture
def ray_session() -> Iterator[None]:
    from pipeline.runtime import cluster_ray

    cluster_ray.connect(cpus=2)
    yield
    cluster_ray.disconnect()


@pytest.mark.ray
def test_figures_are_all_there(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    settings = {"images": 10, "rows": 2000, "steps": 2, "repeats": 1}
    found = data.run(parse(BenchmarkConfig, {"benchmark": "data", "data": settings}))
    assert found["images"] == 10 and found["rows"] == 1000 // 64 * 64
    assert set(found["bounds"]) <= found.keys() and all(found[name] >= 0 for name in found["bounds"])
    for name in (
        "prepare_over_pil_cpu",
        "stream_rows_per_second",
        "pyarrow_rows_per_second",
        "stream_peak_growth",
        "prepare_peak_growth",
    ):
        assert found[name] > 0, name
    assert list(tmp_path.iterdir()) == []
