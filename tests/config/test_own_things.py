"""A method and a source that this project does not know, each a module and a line in its table, with a
setting of its own: configured, run, reported."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from pipeline.config.prepare import PrepareConfig
from pipeline.config.reading import dump, parse, parse_given
from pipeline.config.unlearn import UnlearnConfig
from pipeline.data import ingest, ingest_ray
from pipeline.data.sources import SOURCES, Kind
from pipeline.errors import InputError
from pipeline.reports.run_report import render_report
from pipeline.runs.request_checks import with_own_settings
from pipeline.unlearning.methods.table import METHODS, Method
from tests.tracking_samples import result_json
from tests.training import runs

METHOD = '''
"""The exchange loss, made stronger."""

from pydantic import Field

from pipeline.unlearning.methods.settings import MethodSettings


class Settings(MethodSettings):
    strength: float = Field(2.0, gt=0, description="factor of the gradient")


def toy(gradients, settings):
    return settings.strength * gradients.of("keep")[0]
'''
SOURCE = '''
"""Squares, as grey as their number."""

import numpy as np
from pydantic import Field

from pipeline.data.sources.base import HeldOut, Item, hold_out


class Settings(HeldOut):
    count: int = Field(ge=1, description="images of each class")


class Squares:
    classes = ("dark", "bright")
    scattered = False

    def __init__(self, count, held_out):
        self.count, self.held_out = count, held_out

    def items(self):
        numbers = range(2 * self.count)
        items = [Item(sample_id=f"s{n}", label=n % 2, split="train", ref=str(n)) for n in numbers]
        return hold_out(items, self.held_out)

    def read(self, items):
        for item in items:
            yield np.full((8, 8, 1), 100 * item.label + int(item.ref), np.uint8)
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`METHOD` and `SOURCE` in one module of a folder of its own."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "toys.py").write_text(METHOD.replace("class Settings", "class Stronger") + SOURCE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    yield importlib.import_module("toys")
    sys.modules.pop("toys")


def test_a_method_of_ones_own(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Method(
        gradient=module.toy,
        title="A toy",
        meaning="the exchange loss, made stronger",
        source="",
        settings=module.Stronger,
    )
    monkeypatch.setitem(METHODS, "toy", line)

    def configured(**own: float) -> UnlearnConfig:
        return with_own_settings(runs.run_config(method={"name": "toy", **own}))

    assert configured().method.own == {"strength": 2.0}
    with pytest.raises(InputError, match=r"method\.strength: got 0, input should be greater than 0"):
        configured(strength=0)
    with pytest.raises(InputError, match=r"method\.penalty: toy does not have it; its settings are strength"):
        configured(penalty=1)

    def gradient_norm(strength: float) -> float:
        logs, _, _ = runs.steps_of({"method": {"name": "toy", "strength": strength}}, 1)
        return float(logs[0]["grad_norm/update"])

    assert gradient_norm(3.0) == pytest.approx(3 * gradient_norm(1.0))

    config = configured(strength=3)
    assert yaml.safe_load(dump(config))["method"]["strength"] == 3.0
    assert parse_given(UnlearnConfig, yaml.safe_load(dump(config))).method == config.method
    method = {"method": "toy", "method_config": config.method.model_dump(mode="json")}
    report = render_report(result_json("r", "d" * 64) | method, [], {}, dump(config))
    assert "A toy (toy): " in report and "method strength" in report and ">3.0<" in report


def test_a_source_of_ones_own(module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Kind(open=module.Squares, settings=module.Settings, meaning="squares of one grey")
    monkeypatch.setitem(SOURCES, "squares", line)
    values = {"storage": str(tmp_path / "runs"), "lake": "squares", "prepare": {"size": 8, "channels": 1}}

    def configured(**own: float) -> PrepareConfig:
        return parse(PrepareConfig, values | {"source": {"kind": "squares", **own}})

    for own, message in (
        ({}, r"source\.count: got none, expected images of each class"),
        ({"count": 0}, r"source\.count: got 0"),
        ({"count": 3, "uri": 1}, r"source\.uri: squares does not have it; its settings are held_out, count"),
    ):
        with pytest.raises(InputError, match=message):
            ingest_ray.describe(configured(**own))
    config = configured(count=10)
    assert "20 images of 2 classes" in ingest_ray.describe(config)
    lake = ingest_ray.prepare(config, run=lambda tasks: map(ingest.make_shard, tasks)).lake
    assert [(item.name, item.train_rows, item.heldout_rows) for item in lake.manifest.classes] == [
        ("dark", 8, 2),
        ("bright", 8, 2),
    ]
    assert lake.manifest.source == {"kind": "squares", "held_out": 0.2, "count": 10}
    assert ingest_ray.prepare(config).reused
    with pytest.raises(InputError, match=r"was made with source\.count = 10, got 11"):
        ingest_ray.prepare(configured(count=11))
