"""Methods under attack: the grid, the references, the table; without running it."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import parse
from pipeline.config.attack import AttackMethodsConfig
from pipeline.errors import InputError
from pipeline.studies.attack_comparison import BASE, REFERENCE, attacked_cells, table
from pipeline.weights import model_folder

GRID: dict[str, Any] = {
    "seeds": [0, 1],
    "pairs": [[1, 7]],
    "unlearn": {"train": {"workers": 1}},
    "rows": {"exchange": {"method.name": "exchange"}, "esd": {"method.name": "esd"}},
    "attack_suite": ["none", "finetune", "embedding from own", "embedding from mean"],
}


def config(root: Path, **values: Any) -> AttackMethodsConfig:
    return parse(AttackMethodsConfig, {**GRID, "storage": str(root), **values})


def test_references_are_those_that_were_pretrained(tmp_path: Path) -> None:
    assert [cell.cell.row for cell in attacked_cells(config(tmp_path))] == ["exchange", "esd"] * 2
    base = model_folder.model_uri(str(tmp_path), "DiT-tiny", "digits")
    for uri in (base, f"{base}-without-1"):
        model_folder.write(uri, {}, {}, {})
    made = attacked_cells(config(tmp_path))
    assert [cell.cell.row for cell in made[4:]] == [BASE, REFERENCE] * 2 and made[
        5
    ].reference == f"{base}-without-1"
    assert len({cell.key for cell in made}) == 8
    assert len(attacked_cells(config(tmp_path, references=False))) == 4
    more = attacked_cells(config(tmp_path, attacks={"finetune_steps": 7}))
    assert not {cell.key for cell in made} & {cell.key for cell in more}


def test_an_unknown_attack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="attack_suite: got 'hammer', expected some of none, finetune"):
        attacked_cells(config(tmp_path, attack_suite=["hammer"]))


def test_the_table_takes_the_worst_start_and_says_what_was_not_reached(tmp_path: Path) -> None:
    def run(own: float, mean: float, steps: int | None) -> dict[str, Any]:
        def share(value: float) -> dict[str, Any]:
            # a share in place of its value: as earlier results have it
            mean = {"value": 0.99} if value > 0.3 else 0.99
            return {"forget_fraction": {"value": value}, "retain_accuracy": {"mean": mean}}

        return {
            "row": "exchange",
            "settled_step": 8,
            "attack_suite": {
                "none": share(0.0),
                "finetune": share(0.1),
                "embedding from own": share(own),
                "embedding from mean": share(mean),
            },
            "relearn": {
                "budget": 96,
                "forgotten_label": {"steps": steps},
                "never_trained_label": {"steps": 4},
            },
        }

    found = [
        run(0.5, 0.9, 32),
        run(0.2, 0.1, None),
        run(0.3, 0.4, 48) | {"settled_step": None},
        {"row": "esd", "failed": "step 2: not finite"},
    ]
    lines = table(found, config(tmp_path)).splitlines()
    wanted = (
        "| exchange | 3 | 2 of 3 | 0.990 | 0.00 (0.00 to 0.00) | 0.10 (0.10 to 0.10) | 0.40 (0.20 to 0.90) |"
        " 48 (32 to > 96) | 4 |"
    )
    assert lines[2] == wanted
    assert lines[3].startswith("| esd | 1 | failed") and all(
        line.count("|") == lines[0].count("|") for line in lines
    )
