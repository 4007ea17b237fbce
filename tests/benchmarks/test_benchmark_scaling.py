"""The scaling benchmark on a small model: its figures hang together, and what it lacks is said before
anything is measured."""

from pathlib import Path

import pytest

from pipeline.benchmarks.scaling import run
from pipeline.benchmarks.step import chosen, model_of
from pipeline.config import BenchmarkConfig, parse
from pipeline.errors import InputError

SMALL = {"width": 24, "depth": 1, "tokens": 4, "batch": 4, "trainable": "all", "rounds": 3, "ray": False}


def test_one_worker_two_workers_and_two_strangers() -> None:
    found = run(parse(BenchmarkConfig, {"scaling": {**SMALL, "start_up": False}}))["plain"]
    for kind in ("cpu_seconds", "wall_seconds"):
        assert found["one_worker"][kind] > 0 and found["two_workers"][kind] > 0
        parts = found["two_over_apart"][kind] * found["apart_over_one"][kind]
        assert 0.2 < parts / found["two_over_one"][kind] < 5  # medians of the same rounds: about equal
    assert 0 < found["reduce_share"] < 1


def test_start_up_without_the_quickstarts_models_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no lake at .*prepare_data"):
        run(parse(BenchmarkConfig, {"storage": str(tmp_path), "scaling": SMALL}))


def test_a_subset_that_the_network_has_not_got_is_bad_input() -> None:
    model = model_of(24, 1, 4, seed=0)
    with pytest.raises(InputError, match=r"step\.trainable: got the last 4 blocks, expected 1 to 1"):
        chosen(model, "labels_and_adaln:4", "step")
