"""The records' way from the worker that writes them to the driver that follows them."""

from pathlib import Path

import pytest

from pipeline import storage
from pipeline.runtime.metrics_log import Follower, Record, Writer, read


def test_every_record_arrives_once(tmp_path: Path) -> None:
    uri, taken = str(tmp_path / "metrics.jsonl"), []
    with Follower(uri, taken.extend, every_s=0.001):
        writer = Writer(uri, every_s=0.0)
        for step in range(50):
            writer.write({"step": step})
    assert [record["step"] for record in taken] == list(range(50))


def test_the_last_records_arrive_though_no_poll_came_after_them(tmp_path: Path) -> None:
    """A run's outcome is written at its very end: whoever follows it leaves at once."""
    uri, taken = str(tmp_path / "metrics.jsonl"), []
    with Follower(uri, taken.extend, every_s=3600):
        writer = Writer(uri, every_s=0.0)
        for step in range(3):
            writer.write({"step": step})
    assert [record["step"] for record in taken] == [0, 1, 2]


def test_a_writer_that_waits_for_more_writes_the_rest_when_told(tmp_path: Path) -> None:
    uri = str(tmp_path / "metrics.jsonl")
    writer = Writer(uri, earlier=[{"step": 1}], every_s=3600)
    writer.write({"step": 2})
    writer.write({"step": 3})
    writer.flush()
    assert [record["step"] for record in read(uri)] == [1, 2, 3]


def test_records_taken_back_by_a_continued_run_are_followed_from_where_they_end(tmp_path: Path) -> None:
    """A worker that failed goes on from its checkpoint: the file is shorter than what was seen of it."""
    uri, taken = str(tmp_path / "metrics.jsonl"), []
    follower = Follower(uri, taken.extend, every_s=3600)
    for steps in ([1, 2, 3, 4], [1, 2], [1, 2, 3], [1, 2, 3]):
        Writer(uri, earlier=[{"step": step} for step in steps]).flush()
        follower._poll()
    assert [record["step"] for record in taken] == [1, 2, 3, 4, 3]


def test_a_store_that_does_not_answer_once_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, taken = str(tmp_path / "metrics.jsonl"), []
    Writer(uri, earlier=[{"step": 1}]).flush()
    follower = Follower(uri, taken.extend, every_s=3600)

    def away(uri: str) -> bool:
        raise OSError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "exists", away)
        follower._poll()
    follower._poll()
    assert taken == [{"step": 1}]


def test_a_follower_that_fails_is_heard_and_does_not_hide_what_failed_before(tmp_path: Path) -> None:
    """As where the tracking server stays away: the records since then would be missing, so the job may not
    end well."""
    uri = str(tmp_path / "metrics.jsonl")
    Writer(uri, every_s=0.0).write({"step": 1})
    tries: list[int] = []

    def take(fresh: list[Record]) -> None:
        tries.append(len(fresh))
        raise ConnectionError("no tracking server")

    with pytest.raises(ConnectionError, match="no tracking server"), Follower(uri, take, every_s=0.001):
        pass
    assert tries == [1], "what it was handed is not left out for the next one"
    with pytest.raises(KeyError, match="the job itself"), Follower(uri, take, every_s=0.001):
        raise KeyError("the job itself")
