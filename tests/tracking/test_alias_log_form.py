"""The alias log on disk: what an earlier version wrote is read, and what is written has the same form."""

import json
from dataclasses import asdict
from pathlib import Path

from pipeline.tracking import alias_log

WRITTEN = {
    "number": 1,
    "time": "2026-11-28T12:59:35+00:00",
    "action": "register",
    "alias": "candidate",
    "came_from": None,
    "version": 1,
    "by": "root@vm",
    "previous": "",
    "details": {},
    "digest": "dfc49993370f833907a9ce11887dceacfed07a4d7caf17dce2fe370173de8b0e",
}


def test_a_log_from_before_is_read_and_continued(tmp_path: Path) -> None:
    log = tmp_path / "registry" / "m" / "log"
    log.mkdir(parents=True)
    (log / "000001.json").write_text(json.dumps(WRITTEN, indent=1) + "\n")
    (entry,) = alias_log.read(str(tmp_path), "m")
    assert asdict(entry) == WRITTEN
    following = alias_log.append(
        str(tmp_path), "m", [entry], action="promote", alias="champion", came_from=None, version=1
    )
    assert following.previous == WRITTEN["digest"] and alias_log.read(str(tmp_path), "m") == [
        entry,
        following,
    ]
    text = json.loads((log / "000002.json").read_text())
    assert text == asdict(following) and text.keys() == WRITTEN.keys()
