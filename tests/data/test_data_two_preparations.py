"""Two preparations of one lake at once: one works, the other is told so."""

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from pipeline.config import PrepareConfig, parse
from pipeline.data import ingest, ingest_ray
from pipeline.errors import InputError


def config(root: Path, **prepare: int) -> PrepareConfig:
    values = {"storage": str(root), "lake": "x", "prepare": {"size": 8, "channels": 1, **prepare}}
    return parse(PrepareConfig, values)


def in_turn(tasks: Sequence[ingest.Task]) -> Iterable[ingest.Made]:
    return map(ingest.make_shard, tasks)


@pytest.mark.parametrize("other", [{}, {"size": 9}])
def test_the_second_is_refused_while_the_first_works(tmp_path: Path, other: dict[str, int]) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(tasks: Sequence[ingest.Task]) -> Iterable[ingest.Made]:
        started.set()
        assert go_on.wait(60)
        return in_turn(tasks)

    first = threading.Thread(target=lambda: ingest_ray.prepare(config(tmp_path), run=slow))
    first.start()
    assert started.wait(60)
    try:
        with pytest.raises(InputError, match=r"is being prepared by another process \(.*held by process \d+"):
            ingest_ray.prepare(config(tmp_path, **other), run=in_turn)
    finally:
        go_on.set()
        first.join()
    assert ingest_ray.prepare(config(tmp_path), run=in_turn).reused
    assert sorted(path.name for path in (tmp_path / "lakes/x").iterdir()) == ["data", "manifest.json"]


def test_one_that_was_finished_meanwhile_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = ingest_ray.listed

    def slowly(parsed: PrepareConfig) -> tuple:
        monkeypatch.setattr(ingest_ray, "listed", listed)
        assert not ingest_ray.prepare(config(tmp_path), run=in_turn).reused
        return listed(parsed)

    monkeypatch.setattr(ingest_ray, "listed", slowly)
    assert ingest_ray.prepare(config(tmp_path), run=in_turn).reused
    assert sorted(path.name for path in (tmp_path / "lakes/x").iterdir()) == ["data", "manifest.json"]


def test_one_that_failed_keeps_nobody_out(tmp_path: Path) -> None:
    def fail(tasks: Sequence[ingest.Task]) -> Iterable[ingest.Made]:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        ingest_ray.prepare(config(tmp_path), run=fail)
    assert not ingest_ray.prepare(config(tmp_path), run=in_turn).reused
