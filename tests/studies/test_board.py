"""The board: shards and budgets of its runs, what it refuses, what it shows, how it looks in a browser."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Tab, chromium, layout, visit

from models.generative import build
from models.weights import to_bytes
from pipeline import storage
from pipeline.config import CompareConfig, PretrainConfig, parse, parse_given
from pipeline.config.attack import AttackMethodsConfig
from pipeline.data.tombstones import open_lake
from pipeline.errors import InputError
from pipeline.seeding import generator
from pipeline.studies import behaviour, board
from pipeline.studies.attack_comparison import BASE, REFERENCE
from pipeline.studies.comparison import every_result, results_uri, settings_of
from pipeline.studies.grid import cells, model_uri_of
from pipeline.studies.resumable import require_same_settings
from pipeline.training.pretrain_run import model_uri_of as model_uri_of_pretrained
from pipeline.weights import model_folder
from tests import untrained

GRID: dict[str, Any] = {
    "name": "small",
    "seeds": [0, 1],
    "pairs": [[1, 7]],
    "unlearn": {"train": {"workers": 1}, "optim": {"lr": 0.5}},
    "rows": {"plain": {"method.name": "exchange"}, "<strong>": {"method.penalty": 10}},
}
NAMES = [str(label) for label in range(10)]


def config(root: Path | str, **changes: Any) -> CompareConfig:
    return parse(CompareConfig, {**GRID, "storage": str(root), **changes})


def result(cell: Any, **changes: Any) -> dict[str, Any]:
    figures = dict.fromkeys(("forget_fraction", "exchange_fraction", "exchange_density"), 0.25)
    figures |= {"exchange_density_own": 0.5, "retain_mean": 0.9, "retain_min": 0.5, "fid": 12.0}
    facts = {"key": cell.key, "row": cell.row, "pair": list(cell.pair), "seed": cell.config.seed}
    return {
        **facts,
        **figures,
        "samples": "request",
        "settled_step": 4,
        "steps": 20,
        "step_cpu_seconds": 2.0,
        "prepare_cpu_seconds": 0.5,
        **changes,
    }


def left_by_two_shards(root: Path) -> CompareConfig:
    """A comparison whose runs are there, one of them broken down, with pictures of flat grey."""
    whole = config(root)
    lines = [result(cell) for cell in cells(whole)]
    lines[3] = {
        **{key: lines[3][key] for key in ("key", "row", "pair", "seed")},
        "failed": "step 3: loss of keep is not finite",
    }
    images = {str(label): torch.full((2, 8, 8, 1), 20 * label, dtype=torch.uint8) for label in NAMES_AS_INT}
    for name in ("base", *(line["key"] for line in lines[:3])):
        uri = storage.join(str(root), "comparisons", "small", "request", f"{name}.safetensors")
        storage.write_bytes(uri, to_bytes(images))
    for shard in (0, 1):
        text = "".join(json.dumps(line) + "\n" for line in lines[shard::2])
        storage.write_text(results_uri(config(root, shards=2, shard=shard)), text)
    return whole


NAMES_AS_INT = range(10)


def test_shards_share_the_runs_and_the_board_has_them_all(tmp_path: Path) -> None:
    whole = left_by_two_shards(tmp_path)
    uris = {results_uri(config(tmp_path, shards=2, shard=shard)) for shard in (0, 1)}
    assert len(uris) == 2 and results_uri(whole) not in uris
    assert [line["key"] for line in every_result(whole)] == [cell.key for cell in cells(whole)]
    assert every_result(config(tmp_path, name="sm")) == []  # another comparison's name begins like it
    with pytest.raises(InputError, match=r"shard: got 2 of 2, expected 0 to 1"):
        config(tmp_path, shards=2, shard=2)


def test_equal_cpu_seconds_bound_every_run_settled_or_not() -> None:
    made = [cell.config for cell in cells(config("/nowhere", cpu_seconds=3))]
    assert all(one.optim.max_cpu_seconds == 3 and one.evaluate.to_the_end for one in made)
    assert not any(one.evaluate.to_the_end for one in (cell.config for cell in cells(config("/nowhere"))))


def test_a_comparison_goes_on_with_the_settings_it_was_begun_with(tmp_path: Path) -> None:
    uri = str(tmp_path / "small.yaml")
    require_same_settings(settings_of(config(tmp_path)), uri)
    more = config(tmp_path, rows={**GRID["rows"], "more": {"optim.lr": 1}}, seeds=[0, 1, 2])
    require_same_settings(settings_of(more), uri)
    require_same_settings(settings_of(config(tmp_path)), uri)  # fewer rows of the same
    changed = config(
        tmp_path,
        cpu_seconds=3,
        unlearn={"train": {"workers": 1}, "optim": {"lr": 0.1}},
        rows={"plain": {"method.name": "surgery"}},
    )
    with pytest.raises(InputError) as refusal:
        require_same_settings(settings_of(changed), uri)
    assert "\n" not in str(refusal.value)
    for difference in (
        "cpu_seconds absent (now 3.0)",
        "unlearn.optim.lr 0.5 (now 0.1)",
        'rows.plain {"method.name": "exchange"} (now {"method.name": "surgery"})',
    ):
        assert difference in str(refusal.value)


def test_excess_is_over_the_reference_and_a_missing_one_is_said_with_its_command(tmp_path: Path) -> None:
    def attacked(row: str, *shares: float) -> dict[str, Any]:
        suite = {f"attack {k}": {"forget_fraction": {"value": value}} for k, value in enumerate(shares)}
        suite["none"] = {"forget_fraction": {"value": 1.0}}
        return {"key": row, "row": row, "pair": [1, 7], "attack_suite": suite}

    whole = config(tmp_path, attack_results="tried")
    lines = [result(cell) for cell in cells(whole)]
    assert board.with_excess(whole, lines)[1] == ["no attacks yet: jobs/attack_methods.py --set name=tried"]
    uri = storage.join(str(tmp_path), "comparisons", "tried.jsonl")
    tried = [attacked("plain", 0.3, 0.9), attacked(BASE, 1.0)]
    storage.write_text(uri, "".join(json.dumps(line) + "\n" for line in tried))
    with_excess, missing = board.with_excess(whole, lines)
    assert {line["excess"] for line in with_excess} == {None}
    assert len(missing) == 1 and "--set 'without=[1]'" in missing[0]
    tried.append(attacked(REFERENCE, 0.5, 0.2))
    storage.write_text(uri, "".join(json.dumps(line) + "\n" for line in tried))
    with_excess, missing = board.with_excess(whole, lines)
    assert missing == []
    assert [line["excess"] for line in with_excess] == [pytest.approx(0.4), None] * 2
    with pytest.raises(InputError, match="attack_results: got tried, but this job makes them"):
        parse(AttackMethodsConfig, {**GRID, "attack_results": "tried"})


def test_the_page_has_medians_runs_and_pictures_and_escapes_what_is_not_its_own(tmp_path: Path) -> None:
    whole = left_by_two_shards(tmp_path)
    uri, missing = board.write(whole, every_result(whole), NAMES)
    page = Path(uri).read_text()
    assert missing == [] and "4 of 4 runs" in page
    assert "&lt;strong&gt;" in page and "<strong>" not in page
    assert page.count("data:image/png") == 3 + 1  # the runs that did not break down, and the base
    assert "step 3: loss of keep is not finite" in page
    assert "attacks: excess" not in page.split("</thead>")[0], "nothing was attacked"
    assert board._cells([result(cell) for cell in cells(whole)][:1])[-1] == ("2.5", "2.5")
    assert np.isfinite([float(value) for _, value in board._cells([result(cells(whole)[0])]) if value]).all()


def test_behaviour_is_measured_against_all_references_that_are_there(tmp_path: Path) -> None:
    """Untrained models of several seeds: the base, two references and the runs' losses."""
    root = str(tmp_path)
    untrained.fill(root)
    whole = config(root, rows={"plain": {"method.name": "exchange"}})
    lake = open_lake(root, whole.lake)
    (base,) = {model_uri_of(cell) for cell in cells(whole)}
    stored = model_folder.read(base, "base")
    model = build(stored.config)
    lines = []
    for seed, cell in enumerate(cells(whole)):
        model.net.load_state_dict(dict(stored.state))
        with torch.no_grad():
            for index, weight in enumerate(model.net.parameters()):
                weight += 0.02 * torch.randn(weight.shape, generator=generator(seed, index))
        name = f"{base}-without-1" + ("-number-1" if seed else "")
        assert len(board.with_behaviour(whole, [result(cell, losses={"forgotten": [1.0]})])[2]) == 1
        model_folder.write(name, stored.config, dict(model.net.state_dict()), {"made": "for a test"})
        lines.append(result(cell, losses=behaviour.probe_losses(model, lake, 1)))
    measured, yardsticks, missing = board.with_behaviour(whole, lines)
    assert missing == [] and "2 references" in yardsticks[1, 7]
    for line, seed in zip(measured, (0, 1), strict=True):
        assert line["behaviour"]["forgotten"] > 0, seed  # each of the two is apart from their mean
        assert line["behaviour_of_all"]["retained"] == pytest.approx(0.0, abs=1e-9)  # together they are them
    again, _, _ = board.with_behaviour(whole, lines)
    assert again == measured


def test_a_further_reference_has_a_folder_and_a_seed_of_its_own() -> None:
    reference = {"storage": "/nowhere", "without": [1]}
    uris = [
        model_uri_of_pretrained(parse_given(PretrainConfig, {**reference, "number": k})) for k in range(3)
    ]
    assert uris[0] == "/nowhere/models/dit-tiny-digits-without-1"
    assert uris[1:] == [f"{uris[0]}-number-{k}" for k in (1, 2)]
    with pytest.raises(InputError, match=r"number: got it while without is absent"):
        parse_given(PretrainConfig, {"number": 1})


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser(tmp_path: Path) -> None:
    whole = left_by_two_shards(tmp_path)
    path = Path(board.write(whole, every_result(whole), NAMES)[0])

    async def look(tab: Tab, width: int) -> dict[str, Any]:
        await tab.open(path.as_uri(), width=width)
        seen = await layout(tab)
        find = "document.getElementById('find')"
        await tab.run(f"{find}.value = 'STRONG'; {find}.dispatchEvent(new Event('input'))")
        seen["filtered"] = await tab.run("document.getElementById('count').value")
        await tab.run("document.querySelectorAll('#settings th button')[1].click()")
        heads = "[...document.querySelectorAll('#settings tbody th')].map(e => e.textContent)"
        seen["sorted"] = await tab.run(heads)
        return seen | {"said": tab.said, "asked": [url for url in tab.asked if "data:" not in url[:5]]}

    with chromium(tmp_path / "profile") as address:
        for width in (400, 1400):
            seen = visit(address, lambda tab, width=width: look(tab, width))
            assert seen["said"] == [] and seen["asked"] == [path.as_uri()]
            assert seen["wide"] <= width and seen["small"] == []
            assert seen["filtered"] == "2 of 4"
            assert seen["sorted"] == ["<strong>", "plain"], "the one that settled in fewer runs first"
