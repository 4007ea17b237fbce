"""What a run may be continued with, and what is refused, without Ray."""

from pathlib import Path

import pytest
from untrained import fill

from pipeline import storage
from pipeline.config import UnlearnConfig, parse
from pipeline.errors import InputError
from pipeline.runs.preflight import HOW, SETTINGS, check, settings_text


def test_a_run_continues_as_what_it_was_wherever_it_is_placed(tmp_path: Path) -> None:
    root = str(tmp_path)
    fill(root)
    values = {"storage": root, "run_id": "first", "request": {"classes": [1], "exchange": {1: 7}}}
    prepared = check(parse(UnlearnConfig, values))
    storage.write_text(storage.join(prepared.run_uri, SETTINGS), settings_text(prepared))
    placed = {"train": {"cpus_per_worker": 1, "max_failures": 9, "wait_s": 1, "resize_s": 1, "grace_s": 1}}
    check(parse(UnlearnConfig, {**values, **placed, "evaluate": {"cpus": 1, "timeout_s": 1}}))
    changed = {
        "optim": {"lr": 0.5, "max_steps": 7},
        "method": {"penalty": 0.5},
        "train": {"workers": 1, "wait_s": 1},
        "seed": 4,
    }
    with pytest.raises(InputError) as refused:
        check(parse(UnlearnConfig, {**values, **changed}))
    said = str(refused.value)
    assert said.startswith("run_id first was started with other settings (") and "\n" not in said
    for difference in (
        "method.penalty 0.01 -> 0.5",
        "optim.lr 0.01 -> 0.5",
        "optim.max_steps 60 -> 7",
        "seed 0 -> 4",
        "train.workers 2 -> 1",
    ):
        assert difference in said
    assert not any(key in said for key in HOW)
