"""When a job reached what, from the start of its process to its first step: where a
submission's time goes."""

import os
import time
from itertools import pairwise
from pathlib import Path

# environment variable: Unix seconds at which whoever submitted the job began to
SUBMITTED = "UNLEARN_SUBMITTED_AT"

_reached: dict[str, float] = {}


def mark(name: str) -> None:
    """`name` is reached now; the first time counts."""
    _reached.setdefault(name, time.time())


def reached() -> dict[str, float]:
    """Unix seconds of every milestone so far, in order, the start of this process first, or the submission
    that led to it."""
    submitted = os.environ.get(SUBMITTED)
    return {**({"submitted": float(submitted)} if submitted else {}), "process": process_start(), **_reached}


def process_start() -> float:
    """Unix seconds at which this process began (Linux; elsewhere now)."""
    stat, uptime = Path("/proc/self/stat"), Path("/proc/uptime")
    if not stat.exists():
        return time.time()
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])
    return time.time() - float(uptime.read_text().split()[0]) + ticks / os.sysconf("SC_CLK_TCK")


def spans(moments: dict[str, float]) -> dict[str, float]:
    """Seconds from each milestone to the next, named after where they lead, and their total."""
    names = sorted(moments, key=lambda name: moments[name])
    seconds = {name: round(moments[name] - moments[before], 3) for before, name in pairwise(names)}
    return {**seconds, "total": round(moments[names[-1]] - moments[names[0]], 3)}
