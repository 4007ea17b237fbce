"""A model family of somebody else's: the one that docs/extending.md shows, in a run."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import run_config, run_inputs

from models import generative
from pipeline.seeding import generator
from pipeline.training.loop import unlearn

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


def test_a_family_is_one_class_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    section = PAGE.read_text().split("## A model family\n")[1].split("\n## ")[0]
    code, line = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, Any] = dict(vars(generative))
    exec(code + line, names)
    for family, kind in names["FAMILIES"].items():
        monkeypatch.setitem(generative.FAMILIES, family, kind)
    described = generative.describe("Flow-tiny", shape=(1, 4, 4), class_names=["0", "1", "2", "3"])
    model = generative.build(described)
    assert described["family"] == "flow" and generative.is_conditional("Flow-tiny")
    for index, parameter in enumerate(model.net.parameters()):
        torch.nn.init.normal_(parameter, std=0.1, generator=generator("flow", index))
    inputs = replace(run_inputs(run_config(**{"optim.max_steps": 2})), model=model)
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    outcome = unlearn(inputs)
    assert any(not torch.equal(value, before[name]) for name, value in outcome.trained.items())
    assert outcome.after["forget_fraction"]["n"] == 100
    with pytest.raises(ValueError, match="Flow-tiny"):
        generative.describe("Flow-huge", shape=(1, 4, 4), class_names=["0"])
