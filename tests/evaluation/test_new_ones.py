"""A new metric and a new attack are one file and one table line, with settings of their own and what reports
show of them."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from contexts import FEW, tiny_context

from pipeline.config import load, parse
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.measuring import Attacks, Measuring
from pipeline.errors import InputError
from pipeline.evaluation.attacks.suite import attack_suite_result
from pipeline.evaluation.attacks.table import ATTACKS, attempts_of
from pipeline.evaluation.metrics.table import METRICS, evaluate, metric_settings
from pipeline.evaluation.partials import Shard
from pipeline.reports.evaluation_table import table
from pipeline.reports.run_report import render_report

METRIC = '''
import torch
from pydantic import Field
from pipeline.config.base import Section
from pipeline.evaluation.metrics.table import Metric

class Brightness(Section):
    power: int = Field(1, ge=1, description="of the mean")

def brightness(context, ranks):
    """Of every image of the judge's training rows that this rank has."""
    rows = context.rows(list(context.spec.retained), "train")
    mine = rows.mean[ranks.rank :: ranks.world_size]
    return {"brightness/sum": mine.double().sum(), "brightness/n": torch.tensor(mine.numel())}

def mean_brightness(spec, partials, side):
    mean = (partials["brightness/sum"] / partials["brightness/n"]).item()
    return {"mean": mean ** spec.own["brightness"].power}

LINE = Metric(
    title="Brightness of real rows", meaning="How bright they are.", result=mean_brightness,
    computations=(brightness,), sampled=False, settings=Brightness, sides=("after",),
    words={"mean": "mean over pixels"},
)
'''
ATTACK = """
from dataclasses import replace
from functools import partial
import torch
from pydantic import Field
from pipeline.config.base import Section
from pipeline.evaluation.attacks.suite import Attempt
from pipeline.evaluation.attacks.table import Attack
from pipeline.evaluation.attacks.tuning import copied

class Shake(Section):
    deviation: float = Field(0.0, ge=0)

@torch.no_grad()
def shaken(context, deviation):
    model = copied(context.model)
    for index, parameter in enumerate(model.net.parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
        parameter.add_(deviation * noise)
    return replace(context, model=model)

def attempts(settings, measuring, own):
    about = f"weights shaken by {own.deviation:g}"
    return [Attempt(name="shake", about=about, change=partial(shaken, deviation=own.deviation))]

LINE = Attack(
    title="Shaken weights", holds="Shaking does not bring it back.", returns="Shaking brings it back.",
    attempts=attempts, settings=Shake,
)
"""


def module_of(folder: Path, text: str) -> ModuleType:
    (folder / "toy.py").write_text(text)
    spec = importlib.util.spec_from_file_location("toy", folder / "toy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def both_reports(**blocks: Any) -> tuple[str, str]:
    """What the terminal shows of an evaluation, and the report's page of a run."""
    evaluation = {"before": None, "after": {}, "reference": None, "attack_suite": None} | blocks
    measures = {"before": evaluation["before"], "after": evaluation["after"]}
    page = render_report({"metrics": measures, "attack_suite": evaluation["attack_suite"]}, [], {}, "")
    return table(evaluation), page


def test_a_metric_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "brightness", module_of(tmp_path, METRIC).LINE)
    values: dict[str, float] = {}
    for power in (1, 3):
        given = FEW.model_dump() | {"brightness": {"power": power}}
        measuring = parse(EvaluateConfig, {"measuring": given}).measuring
        context = tiny_context(settings=measuring, own=metric_settings(measuring))
        result = evaluate(["brightness", "forget_fraction"], context, Shard())
        assert set(result["before"]) == {"forget_fraction"}
        values |= {str(power): result["after"]["brightness"]["mean"]}
        shown = both_reports(before=result["before"], after=result["after"])
        for text in shown:
            assert "Brightness of real rows" in text and "mean over pixels" in text
            assert f"{values[str(power)]:.4g}" in text
        assert "How bright they are." in shown[1]
    mean = context.rows([0, 2, 3], "train").mean.double().mean().item()
    assert values["1"] == pytest.approx(mean) and values["3"] == pytest.approx(mean**3)


def test_an_attack_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTACKS, "shake", module_of(tmp_path, ATTACK).LINE)
    few = {"samples": 20, "retain_samples": 2}
    outcomes = {}
    for deviation in (0.0, 5.0):
        settings = parse(EvaluateConfig, {"attacks": {**few, "shake": {"deviation": deviation}}}).attacks
        attempt = attempts_of(settings, FEW)["shake"]
        outcomes[deviation] = attempt.run(tiny_context(), settings)
        result = attack_suite_result({"shake": outcomes[deviation]}, {"shake": attempt}, 0.05)
        terminal, page = both_reports(attack_suite=result)
        assert "shake" in terminal and f"{outcomes[deviation]['forget_fraction']['value']:.4g}" in terminal
        assert "Shaken weights" in page and f"Weights shaken by {deviation:g}" in page
    unattacked = attempts_of(Attacks(**few), FEW)["none"].run(tiny_context(), Attacks(**few))
    assert outcomes[0.0] == unattacked != outcomes[5.0]


def test_settings_of_their_own_are_checked_like_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS, "brightness", module_of(tmp_path, METRIC).LINE)
    for given, said in (
        ({"brightness": {"powr": 2}}, "unknown key 'measuring.brightness.powr': did you mean"),
        ({"brightness": {"power": 0}}, r"measuring\.brightness\.power: got 0, input should be greater"),
        (
            {"kid": {"power": 1}},
            "unknown key 'measuring.kid': valid keys of measuring are samples, .*brightn",
        ),
    ):
        with pytest.raises(InputError, match=said):
            metric_settings(Measuring.model_validate(given))
    overrides = ["measuring.brightness.power=4", "storage=/nowhere"]
    config = load(EvaluateConfig, "jobs/configs/evaluate_digits.yaml", overrides)
    assert metric_settings(config.measuring)["brightness"].model_dump() == {"power": 4}
    assert "brightness" not in Measuring().model_dump(), "what is not given leaves no trace"
    with pytest.raises(InputError, match=r"unknown key 'measuring\.brightness': .*valid keys of measuring"):
        parse(EvaluateConfig, {"measuring": {"brightness": 3}})
