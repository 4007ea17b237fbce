"""The benchmark of a check beside the training, on untrained weights: every figure is there, and the check did overlap with steps."""

from pathlib import Path

import pytest
from untrained import fill

from pipeline.benchmarks import evaluation_ray
from pipeline.config import BenchmarkConfig, parse


@pytest.mark.ray
def test_figures_are_all_there(tmp_path: Path) -> None:
    fill(str(tmp_path))
    found = evaluation_ray.run(parse(BenchmarkConfig, {"storage": str(tmp_path), "evaluation": {"rounds": 1, "samples": 400}}))
    assert found["rounds"] == 1 and found["steps_overlapped"] >= evaluation_ray.FEWEST
    for kind in evaluation_ray.KINDS:
        assert found["overlapped_over_alone"][kind] == pytest.approx(found["overlapped"][kind] / found["alone"][kind], rel=0.05) > 0
    assert found["check_seconds"] > found["overlapped"]["wall_seconds"] * evaluation_ray.FEWEST * 0.99
