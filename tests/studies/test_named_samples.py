"""Requests for single images in a comparison: what is refused, a run beside one for a class, table, picture
and page."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.config import CompareConfig, parse
from pipeline.config.attack import AttackMethodsConfig
from pipeline.errors import InputError
from pipeline.studies import board
from pipeline.studies.comparison import draw_sheets, every_result, results_uri, run_cell, samples_uri, table
from pipeline.studies.grid import cells, require_served
from tests import untrained

NAMES = [str(label) for label in range(10)]
IDS = ("digits-00013", "digits-00023", "digits-00045")  # 3s


def config(root: Path, **changes: Any) -> CompareConfig:
    few = {"samples": 20, "retain_samples": 1, "final_samples": 100, "final_retain_samples": 1}
    steps = {"every": 1, "final_sampler_steps": 2, "sampler_steps": 2, "final_null_samples": 0}
    (root / "ids.txt").write_text("\n".join(IDS) + "\n")
    values = {
        "storage": str(root),
        "name": "named",
        "seeds": [0],
        "pairs": [[1, 7]],
        "requests": [{"name": "threes", "sample_ids": str(root / "ids.txt")}],
        "unlearn": {
            "train": {"workers": 1},
            "method": {"targets": "data"},
            "optim": {"batch_size": 8, "max_steps": 1},
            "evaluate": few | steps,
        },
        "rows": {"siss": {"method.name": "siss"}},
    }
    return parse(CompareConfig, values | changes)


def test_requests_are_told_apart_and_keyed_by_what_they_name(tmp_path: Path) -> None:
    pair, named = cells(config(tmp_path))
    assert (pair.pair, pair.named, named.pair, named.named) == ((1, 7), None, (), "threes")
    assert named.config.request.classes == [] and pair.config.request.sample_ids is None
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert cells(config(elsewhere))[1].key == named.key  # a list that moved
    (tmp_path / "ids.txt").write_text(IDS[0])
    assert cells(config(elsewhere))[1].key != named.key, "another list"
    with pytest.raises(InputError, match="pairs: got none, and no requests either"):
        config(tmp_path, pairs=[], requests=[])
    twice = [{"name": "a", "sample_ids": "x"}, {"name": "a", "sample_ids": "y"}]
    with pytest.raises(InputError, match=r"requests: got the names \['a', 'a'\], expected each once"):
        config(tmp_path, requests=twice)
    with pytest.raises(InputError, match="requests: got threes, but the attacks bring a class back"):
        parse(AttackMethodsConfig, config(tmp_path).model_dump(mode="json"))


def test_a_run_has_its_copies_its_curve_its_picture_and_a_line_on_the_board(tmp_path: Path) -> None:
    root = str(tmp_path)
    untrained.fill(root)
    whole = config(tmp_path)
    for name, wrong, words in (
        (
            "esd",
            {"rows": {"esd": {"method.name": "esd"}}},
            r"rows\.esd: request\.sample_ids: got named",
        ),
        ("ids", {"requests": [{"name": "none", "sample_ids": str(tmp_path / "no.txt")}]}, "which is missing"),
    ):
        with pytest.raises(InputError, match=words):
            require_served(config(tmp_path, name=name, **wrong))
    (tmp_path / "other.txt").write_text("digits-99999")
    other = [{"name": "other", "sample_ids": str(tmp_path / "other.txt")}]
    with pytest.raises(InputError, match=r"rows\.siss: .*1 of 1 ids are no training rows"):
        require_served(config(tmp_path, requests=other))
    require_served(whole)

    lines = [run_cell(cell, samples_uri(whole)) for cell in cells(whole)]
    storage.write_text(results_uri(whole), "".join(json.dumps(line) + "\n" for line in lines))
    of_pair, named = every_result(whole)
    assert "curve" not in of_pair and of_pair["pair"] == [1, 7]
    assert (named["named"], named["labels"], named["pair"]) == ("threes", [3], [])
    assert [step for step, *_ in named["curve"]] == [0, 1]
    assert 0 <= named["replication"] <= 1 and named["replication_before"] == named["curve"][0][1]
    assert 0 <= named["membership_auc"] <= 1 and 0 <= named["label_accuracy"] <= 1

    of_classes, of_samples = table(lines, ["siss"]).split("\n\n")
    assert "as exchange" in of_classes and of_classes.count("\n") == 2
    assert (
        "near-copies" in of_samples and "| the model before |" in of_samples and of_samples.count("\n") == 3
    )
    pictures = [uri.rsplit("/", 1)[1] for uri in draw_sheets(whole, lines)]
    assert pictures == ["1-to-7.png", "threes.png"]
    uri, missing = board.write(whole, lines, NAMES)
    page = storage.read_bytes(uri).decode()
    assert '<td data-title="Request" data-value="threes">' in page and "near-copies" in page
    assert len(missing) == 1 and "without class 1" in missing[0]


def test_a_dry_run_asks_what_a_run_would(tmp_path: Path) -> None:
    job = runpy.run_path(str(Path(__file__).parents[2] / "jobs/compare_methods.py"))
    with pytest.raises(InputError, match="no lake at"):
        job["run"](config(tmp_path), dry_run=True)
    assert not storage.exists(samples_uri(config(tmp_path)))
