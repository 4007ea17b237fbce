"""Where a submission's time goes: from whoever submitted it to its first step."""

import time

import pytest

from pipeline.runtime import milestones


def test_time_counts_from_the_submission_where_there_was_one(monkeypatch: pytest.MonkeyPatch) -> None:
    began = milestones.process_start()
    assert 0 < time.time() - began < 3600
    monkeypatch.delenv(milestones.SUBMITTED, raising=False)
    assert next(iter(milestones.reached())) == "process"
    monkeypatch.setenv(milestones.SUBMITTED, f"{began - 5:.3f}")
    found = milestones.spans({**milestones.reached(), "first_step": began + 2})
    assert found["process"] == pytest.approx(5, abs=0.01) and found["total"] >= 7
    assert sum(value for name, value in found.items() if name != "total") == pytest.approx(found["total"], abs=0.01)
