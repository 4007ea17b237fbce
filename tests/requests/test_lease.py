"""One holder at a time, also when holders are killed, run late or come at once."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import lease, storage
from pipeline.errors import InputError
from pipeline.lease import (
    SKEW_S,
    Holder,
    Lease,
    LeaseHeldError,
    LeaseLostError,
    acquire,
    acquire_from_the_gone,
    held,
)

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def files(uri: str) -> list[str]:
    return storage.listing(uri)


@pytest.mark.parametrize("scheme", ["local", "memory"])
def test_held_renewed_given_back(tmp_path: Path, clock: Clock, scheme: str) -> None:
    uri = str(tmp_path / "lease") if scheme == "local" else f"memory://lease-{tmp_path.name}"
    first = acquire(uri, lasts_s=60, clock=clock)
    with pytest.raises(
        LeaseHeldError, match=rf"held by process {os.getpid()} on .*, until 1970-01-12T13:47:40"
    ):
        acquire(uri, lasts_s=60, clock=clock)
    clock.now += 50
    first.renew()
    clock.now += 59
    first.require()
    with pytest.raises(LeaseHeldError):
        acquire(uri, lasts_s=60, clock=clock)
    first.release()
    second = acquire(uri, lasts_s=60, clock=clock)
    assert second.holder.number == first.holder.number + 1 and len(files(uri)) == 1
    with pytest.raises(LeaseLostError):
        first.require()
    first.release()
    second.require()


def test_one_that_ran_out_is_taken_over_after_the_clocks_allowance(tmp_path: Path, clock: Clock) -> None:
    uri = str(tmp_path / "lease")
    first = acquire(uri, lasts_s=60, clock=clock)
    clock.now += 60 + SKEW_S
    with pytest.raises(LeaseHeldError):
        acquire(uri, lasts_s=60, clock=clock)
    with pytest.raises(LeaseLostError, match="ran out, it was not renewed in time"):
        first.require()
    clock.now += 1
    second = acquire(uri, lasts_s=60, clock=clock)
    for late in (first.renew, first.require):
        with pytest.raises(LeaseLostError, match="the lease went to process"):
            late()
    first.release()
    second.require()
    assert json.loads(Path(uri, files(uri)[0]).read_text())["token"] == second.holder.token


def elsewhere(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> None:
    """Leases that are taken from now on say that their holder is another process."""
    original = lease._this_process
    monkeypatch.setattr(lease, "_this_process", lambda *a: replace(original(*a), **changed))


@pytest.mark.parametrize(
    ("changed", "is_free"),
    [
        ({"pid": 2**22 + 1}, True),  # larger than any pid: that process is gone
        ({"started": 1.0}, True),  # the pid is another process's by now
        ({"pid": 2**22 + 1, "pid_space": "another machine"}, False),
        ({"pid": 2**22 + 1, "pid_space": ""}, False),
        ({}, False),
    ],
)
def test_a_dead_holder_is_known_by_its_process_where_that_can_be_seen(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, changed: dict, is_free: bool
) -> None:
    uri = str(tmp_path / "lease")
    with monkeypatch.context() as patch:
        elsewhere(patch, **changed)
        acquire(uri, lasts_s=60, clock=clock)
    if is_free:
        assert acquire(uri, lasts_s=60, clock=clock).holder.number == 2
    else:
        with pytest.raises(LeaseHeldError):
            acquire(uri, lasts_s=60, clock=clock)


@pytest.mark.parametrize("expired", [False, True])
def test_of_many_at_once_one_gets_it(tmp_path: Path, clock: Clock, expired: bool) -> None:
    uri = str(tmp_path / "lease")
    if expired:
        acquire(uri, lasts_s=60, clock=clock)
        clock.now += 1000

    def attempt(_: int) -> Lease | str:
        try:
            return acquire(uri, lasts_s=60, clock=clock)
        except LeaseHeldError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(16)))
    winners = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
    assert len(winners) == 1 and all("held by process" in one for one in outcomes if isinstance(one, str))
    winners[0].require()


def test_one_that_looked_long_ago_does_not_get_it(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look and its file others took number 2, gave it back, and took number 3."""
    uri = str(tmp_path / "lease")
    acquire(uri, lasts_s=60, clock=clock).release()
    original, others = storage.create, []

    def slow(file: str, data: bytes) -> bool:
        monkeypatch.setattr(storage, "create", original)
        acquire(uri, lasts_s=60, clock=clock).release()
        others.append(acquire(uri, lasts_s=60, clock=clock))
        return original(file, data)

    monkeypatch.setattr(storage, "create", slow)
    with pytest.raises(LeaseHeldError):
        acquire(uri, lasts_s=60, clock=clock)
    others[0].require()
    assert files(uri) == ["00000003.json"]


def start(uri: str, lasts_s: float = 600) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("hold_lease.py")), uri, str(lasts_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_two_processes(tmp_path: Path) -> None:
    """The loser is told who holds it; after a kill the next one need not wait for the end."""
    uri = str(tmp_path / "lease")
    first = start(uri)
    assert line(first) == "holding 1"
    second = start(uri)
    assert line(second).startswith(f"told: {uri}: held by process {first.pid} on ") and second.wait(60) == 0
    first.kill()
    third = start(uri)
    assert line(third) == "holding 2", "also while the killed one has not been collected"
    third.communicate("", timeout=60)
    assert third.returncode == 0
    first.communicate(timeout=60)
    fourth = start(uri)
    assert line(fourth) == "holding 3"
    fourth.communicate("", timeout=60)


def test_a_held_lease_is_renewed_meanwhile_and_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, renewals, original = str(tmp_path / "lease"), threading.Semaphore(0), Lease.renew

    def counted(self: Lease) -> None:
        original(self)
        renewals.release()

    monkeypatch.setattr(Lease, "renew", counted)
    with held(uri, lasts_s=0.3) as mine:
        first = mine.holder.expires
        for _ in range(3):
            assert renewals.acquire(timeout=30)
        assert mine.holder.expires > first
    assert Holder(**storage.read_json(f"{uri}/00000001.json")).released
    with pytest.raises(KeyError), held(uri, lasts_s=60):
        raise KeyError
    assert acquire(uri, lasts_s=60).holder.number == 3, "given back after an error as well"


@pytest.mark.parametrize("change", [None, {"expires": "soon"}, {"expires": 1e300}, {"pid": -1}, {"pid": "x"}])
def test_a_file_that_is_no_lease(tmp_path: Path, clock: Clock, change: dict[str, Any] | None) -> None:
    acquire(str(tmp_path), lasts_s=60, clock=clock)
    file = tmp_path / "00000001.json"
    file.write_text(json.dumps({} if change is None else {**json.loads(file.read_text()), **change}))
    with pytest.raises(InputError, match=r"00000001\.json: not a lease .* remove it"):
        acquire(str(tmp_path), lasts_s=60)


def test_one_that_may_be_gone_is_waited_for(tmp_path: Path, clock: Clock) -> None:
    """A holder of another machine: its process cannot be looked at from here."""
    uri = str(tmp_path / "lease")
    gone = acquire(uri, lasts_s=60, clock=clock)
    gone._write(replace(gone.holder, pid_space="elsewhere"))
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock.now += seconds

    later = acquire_from_the_gone(uri, lasts_s=60, clock=clock, sleep=sleep)
    assert later.holder.number == 2 and 60 < sum(pauses) < 80

    def renewing(seconds: float) -> None:
        sleep(seconds)
        later.renew()

    with pytest.raises(LeaseHeldError):
        acquire_from_the_gone(uri, lasts_s=60, clock=clock, sleep=renewing)
