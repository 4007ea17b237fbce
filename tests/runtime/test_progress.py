"""What a log shows of long work: how far it is now and then, and always how far it came."""

import pytest

from pipeline.runtime.progress import Progress, gathered


def test_a_log_ends_with_how_far_it_came_however_quick_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("training", 10)
    for step in range(1, 11):
        progress.at(step, f"loss {step}")
    assert capsys.readouterr().err == "", "the next line is due after seconds"
    progress.close()
    progress.close()
    assert capsys.readouterr().err == "  training 10/10  loss 10\n"


def test_a_line_is_not_said_twice(capsys: pytest.CaptureFixture[str]) -> None:
    rows = gathered([{"row": "a"}, {"row": "b"}], "comparing", 2)
    assert [row["row"] for row in rows] == ["a", "b"]
    assert capsys.readouterr().err == "  comparing 2/2  b\n"
    with Progress("copying", 2, every_s=0.0) as progress:
        progress.add(1)
        progress.add(1)
    assert capsys.readouterr().err == "  copying 1/2\n  copying 2/2\n"


def test_work_that_ended_early_says_how_far_it_came_and_nothing_if_it_never_began(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(KeyError), Progress("copying", 3) as progress:
        progress.add(1)
        raise KeyError
    assert capsys.readouterr().err == "  copying 1/3\n"
    Progress("copying", 3).close()
    assert capsys.readouterr().err == ""
