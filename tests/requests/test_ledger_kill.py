"""kill -9 of processes that submit requests: the log verifies, and every acknowledged request is in it."""

import os
import random
import subprocess
import sys
from pathlib import Path

from pipeline import storage
from pipeline.requests import ledger

ROOT = Path(__file__).resolve().parents[2]
ROUNDS, SEED = 5, 17


def start(root: str, writer: str, number: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("kill_ledger.py")), root, writer, str(number)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_killed_at_random_moments_no_acknowledged_request_is_lost(root: str) -> None:
    """Two at a time, each killed while it is in the middle of the next submission or two later."""
    chance = random.Random(SEED)
    print("seed", SEED)
    acknowledged: list[str] = []
    for round_ in range(ROUNDS):
        processes = [start(root, writer, 100 * round_) for writer in "ab"]
        lines = chance.randrange(1, 6)
        for process in processes:
            assert process.stdout is not None
            acknowledged += [process.stdout.readline().strip() for _ in range(lines)]
        for process in processes:
            for _ in range(chance.randrange(200_000)):  # a random part of a submission
                pass
            process.kill()
            rest = process.communicate()[0].split("\n")
            acknowledged += rest[:-1]  # what comes after the last line's end was cut
        known = ledger.read(root)
        assert set(acknowledged) <= known.requests.keys()
        states = {name: request.state for name, request in known.requests.items()}
        assert {states[name] for name in acknowledged} == {"accepted"}
        unfinished = [name for name, state in states.items() if state == "received"]
        assert len(unfinished) <= 2 * (round_ + 1), "at most the one that each killed process was at"
        for entry in known.entries:
            assert storage.read_json(f"{root}/requests/entries/{ledger.file_name(entry.number)}")
    assert len(acknowledged) == len(set(acknowledged)) >= 2 * ROUNDS
