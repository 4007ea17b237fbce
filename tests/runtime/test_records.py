"""The records' way from the worker that writes them to the driver that follows them."""

from pathlib import Path

import pytest

from pipeline.runtime.metrics_log import Follower, Record, Writer


def test_every_record_arrives_once(tmp_path: Path) -> None:
    uri, taken = str(tmp_path / "metrics.jsonl"), []
    with Follower(uri, taken.extend, every_s=0.001):
        writer = Writer(uri, every_s=0.0)
        for step in range(50):
            writer.write({"step": step})
    assert [record["step"] for record in taken] == list(range(50))


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
