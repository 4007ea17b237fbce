"""The sweep's page from a summary: complete, escaped, nothing from outside."""

from typing import Any
from xml.etree import ElementTree

import pytest

from pipeline.sweep import scores
from pipeline.sweep.page import render_page
from pipeline.sweep.terminal import ending

OBJECTIVES = ["settled_step", "forget_fraction/high", "retain_accuracy/min"]


def row(number: int, settings: dict[str, Any], values: list[float] | None, **changed: Any) -> dict[str, Any]:
    after = {"forget_fraction": {"value": 0.01, "high": 0.03}, "retain_accuracy": {"mean": 0.99, "min": 0.97}}
    seconds = {"steps": 3.0, "evaluation": 10.0, "setup": 0.3, "wall": 14.0}
    return {
        "number": number,
        "settings": settings,
        "status": scores.FINISHED,
        "reason": None,
        "attempts": 1,
        "step": 20,
        "held": 0.04,
        "values": values,
        "gate_passed": True,
        "settled_step": None if values is None else int(values[0]),
        "first_crossing_step": 2,
        "after": after,
        "seconds": seconds,
        **changed,
    }


@pytest.fixture
def summary() -> dict[str, Any]:
    settings = [
        {"method.penalty": penalty, "method.surgery_every": every, "trainable": "labels"}
        for penalty, every in ((0.01, 2), (0.0, 2), (0.0004, 5), (0.3, 1), (0.02, 3), (0.9, 4))
    ]
    rows = [row(n, one, [4.0 + n % 3, 0.03 + 0.01 * n, 1 - 0.02 * n]) for n, one in enumerate(settings)]
    rows[4] |= {
        "status": scores.FAILED,
        "reason": "ValueError: <b>bad</b>",
        "attempts": 3,
        "values": None,
        "after": None,
        "seconds": {"wall": 3.0},
    }
    rows[5] |= {"status": scores.STOPPED, "settled_step": None}
    again = {
        "forget_fraction": {"value": 0.02, "high": 0.045},
        "retain_accuracy": {"mean": 0.98, "min": 0.96},
    }
    verified = {"number": 0, "seed": 77, "after": again, "gate": {"passed": True, "checks": []}}
    return {
        "sweep_id": "sweep-1",
        "request": {"classes": [1], "exchange": {"1": 7}, "sample_ids": None},
        "class_names": ["<zero>", "one"],
        "objectives": OBJECTIVES,
        "base": settings[0],
        "default_trial": 0,
        "trials": rows,
        "ranking": [row["number"] for row in scores.ranked(rows, OBJECTIVES)],
        "front": scores.front(rows, OBJECTIVES),
        "importance": {
            OBJECTIVES[0]: {"method.penalty": 0.7, "method.surgery_every": 0.3},
            OBJECTIVES[1]: {},
            OBJECTIVES[2]: {},
        },
        "seconds": {
            "searched": 80.0,
            "total": 100.0,
            "steps": 12.0,
            "evaluation": 40.0,
            "overhead_per_trial": 1.0,
            "overhead_first": 6.0,
        },
        "winner": {
            "number": 0,
            "version": 3,
            "model": "m",
            "run_id": "sweep-1-best",
            "report": "/r",
            "verified": [verified],
        },
        "seed": 0,
    }


def checks() -> dict[int, list[dict[str, Any]]]:
    return {n: [{"step": s, "forget_fraction/high": 1 / (1 + s)} for s in (0, 2, 4)] for n in range(6)}


def page_of(summary: dict[str, Any], settings_yaml: str = "") -> str:
    return render_page(summary, checks(), settings_yaml, target=0.05, last_step=20)


def test_charts_are_well_formed_and_show_every_finished_trial(summary: dict[str, Any]) -> None:
    page = page_of(summary)
    figures = [part.partition("</figure>")[0] for part in page.split('<figure class="card chart">')[1:]]
    assert len(figures) == 3 + 1  # three pairs of objectives, the curves
    for figure in figures:
        svg = ElementTree.fromstring(figure[figure.index("<svg") : figure.index("</svg>") + 6])
        numbers = [
            float(n)
            for path in svg
            for n in path.get("d", "")
            .replace("h.01", "")
            .replace("M", " ")
            .replace("L", " ")
            .replace("H", " ")
            .replace("V", " ")
            .split()
        ]
        assert numbers and all(0 <= number <= 1000 for number in numbers)
    labels = [
        part.partition("</span>")[0].partition(">")[2] for part in figures[0].split('class="label"')[1:]
    ]
    assert {text.split()[0].rstrip(",") for text in labels} | {"3"} == {"0", "1", "2", "3"}
    assert any("default" in text for text in labels)
    curves = ElementTree.fromstring(figures[3][figures[3].index("<svg") : figures[3].index("</svg>") + 6])
    assert sum(path.get("class", "").startswith("line") for path in curves) == 6
    assert "penalty</span>" in page and "width: 70" in page and "too few trials" in page


def test_the_page_shows_every_trial_and_why_the_winner_is_measured_again(summary: dict[str, Any]) -> None:
    page = page_of(summary, "space: {}")
    assert "Trial 4 failed after 3 attempts: ValueError: &lt;b&gt;bad" in page and "<b>bad" not in page
    assert (
        "4.5\u00a0%" in page
        and "in part the luckiest" in page
        and "m version 3, candidate; run sweep-1-best" in page
    )
    assert (
        page.count("<tr>") >= 6 + 3
        and ">stopped<" in page
        and ">default<" in page
        and 'data-value="0.0">0<' in page
    )
    assert "https://" not in page and "http://" not in page
    none = summary | {"winner": {"number": None, "verified": summary["winner"]["verified"]}}
    assert "nothing was registered" in page_of(none)


def test_the_terminal_says_what_counts(summary: dict[str, Any]) -> None:
    said = ending(summary, "/s/sweeps/sweep-1")
    assert "6 trials: 4 finished, 1 stopped, 1 failed; 1 retried" in said
    assert (
        "on fresh seeds, which is what counts: forget_fraction 0.02 (chosen with 0.01), forget_fraction/high"
        " 0.045 (chosen with 0.03)" in said
    )
    assert "registered m version 3 @candidate" in said and said.endswith("/s/sweeps/sweep-1/sweep.html")
