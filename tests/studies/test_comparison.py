"""The comparison's grid and table without running it, and one run with its picture on an untrained model."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.weights import from_bytes
from pipeline.config import CompareConfig, parse
from pipeline.errors import InputError
from pipeline.studies.comparison import draw_sheets, run_cell, table
from pipeline.studies.grid import cells
from tests import untrained

GRID = {
    "storage": "/nowhere",
    "seeds": [0, 1],
    "pairs": [[1, 7], [3, 5]],
    "unlearn": {"train": {"workers": 1}, "optim": {"lr": 0.5}},
    "rows": {"plain": {"method.name": "exchange"}, "strong": {"method.penalty": 10, "optim.lr": 0.25}},
}


def test_every_row_meets_every_pair_and_seed() -> None:
    made = cells(parse(CompareConfig, GRID))
    assert len({cell.key for cell in made}) == 8
    strong = [cell for cell in made if cell.row == "strong"]
    assert {(cell.pair, cell.config.seed) for cell in strong} == {
        ((1, 7), 0),
        ((1, 7), 1),
        ((3, 5), 0),
        ((3, 5), 1),
    }
    for cell in made:
        assert cell.config.request.exchange == dict([cell.pair]) and cell.config.request.classes == [
            cell.pair[0]
        ]
        assert (cell.config.method.own, cell.config.optim.lr) == (
            ({"penalty": 10, "surgery_every": 2}, 0.25) if cell.row == "strong" else ({}, 0.5)
        )


def test_a_row_with_an_unknown_setting_is_refused() -> None:
    with pytest.raises(InputError, match=r"method\.penalti"):
        cells(parse(CompareConfig, GRID | {"rows": {"typo": {"method.penalti": 1}}}))


def test_what_all_rows_share_goes_to_those_whose_method_has_it() -> None:
    shared = {**GRID, "unlearn": {"method": {"name": "uno", "penalty": 3}, "train": {"workers": 1}}}
    rows = {"own": {}, "other": {"method.name": "surgery"}}
    assert [cell.config.method.own for cell in cells(parse(CompareConfig, shared | {"rows": rows}))[:2]] == [
        {"penalty": 3.0},
        {},
    ]
    wrong = {"wrong": {"method.name": "surgery", "method.penalty": 1}}
    with pytest.raises(InputError, match=r"method\.penalty: surgery does not have it; it has no settings"):
        cells(parse(CompareConfig, shared | {"rows": wrong}))


def test_the_table_counts_runs_that_never_settled_and_names_the_worst() -> None:
    run = {
        "steps": 10,
        "first_crossing_step": 4,
        "forget_fraction": 0.0,
        "exchange_fraction": 1.0,
        "exchange_density": 0.4,
        "exchange_density_own": 0.8,
        "step_cpu_seconds": 5.0,
    }
    run |= {"retain_mean_before": 1.0, "retain_min_before": 0.95, "fid": 2.5}
    results = [
        {"row": "plain", "settled_step": 6, "retain_mean": 0.99, "retain_min": 0.9, **run},
        {"row": "plain", "settled_step": None, "retain_mean": 0.5, "retain_min": 0.1, **run},
        {"row": "plain", "failed": "step 3: loss is not finite"},
    ]
    line = table(results, ["plain", "absent"]).splitlines()[-1]
    kept = "0.745 (0.500) | 0.50 (0.10) | -0.255 (-0.500) / -0.450 (-0.850)"
    assert line == f"| plain | 3 | 4 (2) | 6 (1) | 0.000 | 1.00 | 0.40 (0.80) | {kept} | 2.5 | 0.500 |"


def test_a_run_leaves_what_it_samples_and_the_picture_shows_it(tmp_path: Path) -> None:
    root = str(tmp_path)
    untrained.fill(root)
    few = {
        "every": 1,
        "samples": 20,
        "retain_samples": 1,
        "final_samples": 100,
        "final_retain_samples": 1,
        "final_sampler_steps": 2,
    }
    unlearn = {"optim": {"batch_size": 8, "max_steps": 1}, "evaluate": few | {"sampler_steps": 2}}
    config = parse(
        CompareConfig,
        GRID | {"storage": root, "name": "few", "seeds": [0], "pairs": [[1, 7]], "unlearn": unlearn},
    )
    results: list[dict[str, Any]] = [
        run_cell(cell, str(tmp_path / "comparisons" / "few")) for cell in cells(config)
    ]
    assert table(results, list(config.rows)).count("\n") == 3
    (written,) = draw_sheets(config, results)
    picture = np.asarray(Image.open(io.BytesIO(Path(written).read_bytes())))
    # 48 pixels and a gap of 6; 8 forgotten, a gap, one each of 9 labels
    side, lines = 54, picture[-(3 * 54 - 6) :, -(18 * 54 - 6) :]
    folder = tmp_path / "comparisons" / "few" / results[0]["samples"]
    for line, name in enumerate(["base", *(result["key"] for result in results)]):
        drawn = from_bytes((folder / f"{name}.safetensors").read_bytes(), name)
        for column, image in [
            (0, drawn["1"][0]),
            (7, drawn["1"][7]),
            (9, drawn["0"][0]),
            (17, drawn["9"][0]),
        ]:
            assert (
                lines[line * side : line * side + 48 : 6, column * side : column * side + 48 : 6, 0]
                == image[:, :, 0].numpy()
            ).all()
    assert draw_sheets(config, [results[0] | {"failed": "step 1"}]) == []
