"""Where a submission's time goes: from whoever submitted it to its first step."""

import time

import pytest

from pipeline.runtime import startup_timeline


def test_time_counts_from_the_submission_where_there_was_one(monkeypatch: pytest.MonkeyPatch) -> None:
    began = startup_timeline.process_start()
    assert 0 < time.time() - began < 3600
    monkeypatch.delenv(startup_timeline.SUBMITTED, raising=False)
    assert next(iter(startup_timeline.reached())) == "process"
    monkeypatch.setenv(startup_timeline.SUBMITTED, f"{began - 5:.3f}")
    found = startup_timeline.spans({**startup_timeline.reached(), "first_step": began + 2})
    assert found["process"] == pytest.approx(5, abs=0.01) and found["total"] >= 7
    assert sum(value for name, value in found.items() if name != "total") == pytest.approx(
        found["total"], abs=0.01
    )
