"""What the driver hears of a trial that gave up."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.mark.parametrize("in_storage", [True, False])
def test_the_reason_is_found_before_it_has_got_to_storage(tmp_path: Path, in_storage: bool) -> None:
    from pipeline.sweep.search_ray import Reporter

    file = tmp_path / "error.txt"
    file.write_text("Traceback\n  File ...\nIsADirectoryError: outcome.json\n")
    trial = SimpleNamespace(
        config={"number": 2, "settings": {}, "suggested_at": 0.0},
        last_result=None,
        num_failures=2,
        error_file=str(file),
        get_pickled_error=lambda: None,
        get_error=lambda: "OSError: as storage has it" if in_storage else None,
    )
    rows: list[dict[str, Any]] = []
    Reporter(on_end=rows.append, on_report=lambda result: None).on_trial_error(0, [], trial)
    expected = "OSError: as storage has it" if in_storage else "IsADirectoryError: outcome.json"
    assert (rows[0]["status"], rows[0]["reason"], rows[0]["attempts"]) == ("failed", expected, 2)
