"""kill -9 in the middle of registering and promoting: the registry is as it was or as it was to be, and doing
it again completes it."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROUNDS, SEED = 5, 20


def test_killed_at_random_moments_the_registry_is_before_or_after(tmp_path: Path) -> None:
    script = Path(__file__).with_name("kill_registry.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(ROUNDS), str(SEED)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(script.parents[1]), str(script.parents[2])]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    print(f"seed {SEED}: killed at", [(r["share"], r["killed"]) for r in rounds])
    assert len(rounds) == ROUNDS and any(r["killed"] for r in rounds)
    for r in rounds:
        new, after, again = r["number"], r["after"], r["again"]
        assert after["versions"] in ([*range(1, new)], [*range(1, new + 1)]), r
        assert after["aliases"]["champion"] in (new - 1, new) and after["aliases"]["candidate"] in (
            new - 1,
            new,
        ), r
        assert (
            after["aliases"]["champion"] <= max(after["versions"])
            and after["moved"] == []
            and after["verified"] == "certificate"
        ), r
        assert again == {
            "aliases": {"champion": new, "candidate": new},
            "versions": [*range(1, new + 1)],
            "moved": [],
            "verified": "certificate",
        }, r
