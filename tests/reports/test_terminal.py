"""What a run says at its end."""

import pytest
from tracking_samples import result_json

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
