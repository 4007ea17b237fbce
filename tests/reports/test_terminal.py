"""What a run says at its end."""

import pytest
from tracking_samples import result_json

from pipeline.evaluation.metrics.table import METRICS
from pipeline.reports.terminal import summary


@pytest.mark.parametrize(
    ("first", "settled", "said"),
    [
        (2, 6, "first below target at 2, settled at 6;"),
        (2, None, "first below target at 2, not settled;"),
        (None, None, "never below target;"),
    ],
)
def test_how_the_forgetting_went_is_said_in_words(first: int | None, settled: int | None, said: str) -> None:
    result = result_json("r", "d" * 64) | {"first_crossing_step": first, "settled_step": settled}
    lines = summary(result, "runs/x/report.html").splitlines()
    assert said in next(line for line in lines if line.startswith("  steps "))
    assert lines[-1] == "  report runs/x/report.html"
    assert not any("None" in line for line in lines)


def test_figures_have_the_titles_of_the_metrics_table_and_what_decides_comes_first() -> None:
    result = result_json("r", "d" * 64)
    lines = summary(result, "x").splitlines()[1:]
    assert lines[0].split() == ["before", "after"] and lines[3].split()[-2:] == ["0.004", "0.004"]
    assert lines[1].split("  ")[1] == METRICS["forget_fraction"].title and lines[1].endswith(" 0.004")
    assert lines[2].split() == ["95", "%", "interval,", "n", "0.001", "-", "0.014,", "500"]
    for side in ("before", "after"):
        result[side] |= {"forget_fraction": None, "membership": {"auc": 0.5, "memorised": False}}
    result["after"]["membership"] |= {"low": 0.41, "high": 0.59, "n": 30}
    first, second, bounds, *_ = summary(result, "x").splitlines()[2:]
    assert first.strip() == METRICS["membership"].title and second.endswith("0.500        0.500")
    assert bounds.endswith("0.410 - 0.590, 30")
