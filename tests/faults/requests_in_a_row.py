"""Deletion requests one after another, each answered with a kill -9 on the way: the table of
docs/requests.md.

python tests/faults/requests_in_a_row.py --storage /tmp/requests --start base
python tests/faults/requests_in_a_row.py --storage /tmp/requests --start champion [--seed 0] [--kills 1]
python tests/faults/requests_in_a_row.py --storage /tmp/requests --start auto --rehearse samples

The digits model, made where it is missing, gets 1 -> 7, 3 -> 5, 8 -> 3 (refused: 3 is forgotten), 0 -> 6,
named samples of 2, and 4 -> 9, by jobs/ledger.py and jobs/process_requests.py. Each start has a ledger and a
registry of its own under --storage. With --rehearse samples every request's data is purged once it is
answered, and samples of the base stand in for the rows of its classes from then on. Prints a JSON line a
request and the table; exit code 1 when a figure misses its bound.
"""

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.data.lake import read_lake  # noqa: E402
from pipeline.data.parquet_shards import read_column  # noqa: E402

CONFIG, REGISTRY = "jobs/configs/process_digits.yaml", "jobs/configs/registry_digits.yaml"
NAMED = 40  # samples of class 2
SCOPES: dict[str, list[str]] = {
    "r1": ["request.classes=[1]", "request.exchange={1: 7}"],
    "r3": ["request.classes=[3]", "request.exchange={3: 5}"],
    "r8": ["request.classes=[8]", "request.exchange={8: 3}"],
    "r0": ["request.classes=[0]", "request.exchange={0: 6}"],
    "s2": ["request.sample_ids={ids}"],
    "r4": ["request.classes=[4]", "request.exchange={4: 9}"],
}
REFUSED = "r8"
BOUNDS = {"forget": 0.05, "mean": 0.98, "worst": 0.93, "leakage": 0.02}
HEADINGS = (
    *("request", "version", "start", "forgotten", "forget fraction, upper bound, worst class"),
    *(
        "retained, mean",
        "retained, worst",
        "under other labels",
        "null label",
        "seconds of the run",
        "killed at step",
    ),
)


def job(name: str, *arguments: str, config: str, sets: list[str]) -> list[str]:
    overrides = [part for item in sets for part in ("--set", item)]
    return [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *arguments, "--config", config, *overrides]


def call(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=environment())


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def require(done: subprocess.CompletedProcess[str], code: int = 0) -> str:
    if done.returncode != code:
        raise RuntimeError(
            f"{done.args}: exit {done.returncode}, expected {code}\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def make_model(storage: Path) -> None:
    """Lake, base model and judge, as make quickstart makes them."""
    for name, made in (("prepare_data", "lakes/digits"), ("pretrain", "models/judge-digits")):
        if not (storage / made).exists():
            config = f"jobs/configs/{name.removesuffix('_data')}_digits.yaml"
            require(call(job(name, config=config, sets=[f"storage={storage}"])))


def name_samples(storage: Path, path: Path) -> None:
    lake = read_lake(str(storage / "lakes" / "digits"))
    names = [name for shard in lake.shards([2]) for name in read_column(lake.uri, shard, "sample_id")]
    path.write_text("\n".join(names[:NAMED]) + "\n")


def step_of(root: Path, known: set[str]) -> int:
    """The last step of the run that is not among `known`; -1 where there is none."""
    for folder in (root / "runs").glob("*"):
        metrics = folder / "metrics.jsonl"
        if folder.name not in known and metrics.is_file():
            lines = [line for line in metrics.read_text().splitlines() if line.endswith("}")]
            return max((int(json.loads(line).get("step", -1)) for line in lines), default=-1)
    return -1


def answer(
    root: Path, sets: list[str], chance: random.Random, kills: int, longest_s: float
) -> tuple[list[int], str]:
    """Process until it ends by itself; the steps at which it was killed, and what it said at the end."""
    known = {folder.name for folder in (root / "runs").glob("*")}
    killed: list[int] = []
    command = job("process_requests", config=CONFIG, sets=sets)
    while True:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
        )
        at, step = max([*killed, 0]) + chance.randrange(1, 12), -1
        end = time.monotonic() + (chance.uniform(0, longest_s) if longest_s else math.inf)
        while len(killed) < kills and process.poll() is None and step < at and time.monotonic() < end:
            time.sleep(0.2)
            step = step_of(root, known)
        if len(killed) < kills and process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed.append(step)
        said = process.communicate()[0]
        if process.returncode != -signal.SIGKILL:
            if process.returncode not in (0, 3):
                raise RuntimeError(said)
            return killed, said


def figures(root: Path, sets: list[str], name: str) -> dict[str, Any]:
    """What the last run says: every class that any request forgot, the others, and what it took."""
    listed = json.loads(require(call(job("ledger", "list", "--json", config=CONFIG, sets=sets))))
    (request,) = [item for item in listed if item["id"] == name]
    runs = [
        entry["details"]["run_id"]
        for entry in request["history"]
        if entry["move"] in ("answered", "postponed")
    ]
    result = json.loads((root / "runs" / runs[-1] / "result.json").read_text())
    after = result["after"]
    shares: Mapping[str, Any] = {
        **(after["forget_fraction"] or {}).get("per_class", {}),
        **(after.get("earlier_fraction") or {}).get("per_class", {}),
    }
    leakage = after.get("leakage") or {}
    return {
        "request": name,
        "state": request["state"],
        "answers": [entry["move"] for entry in request["history"]].count("answered"),
        "version": result["model"]["version"],
        "start": "champion" if result["base_version"] else "base",
        "stand_ins": result.get("stand_ins"),
        "forgotten": sorted(map(int, shares)),
        "forget": max((share["high"] for share in shares.values()), default=None),
        "mean": after["retain_accuracy"]["mean"],
        "worst": after["retain_accuracy"]["min"],
        "leakage": (leakage.get("other_labels") or {}).get("value"),
        "null": (leakage.get("null_label") or {}).get("value"),
        "auc": (after.get("membership") or {}).get("auc"),
        "closed": {block["id"]: block["closed"] for block in result["requests"]},
        "seconds": result["timing"]["total_seconds"],
        "failed_checks": [check for check in result["gate"]["checks"] if not check["passed"]],
    }


def misses(row: Mapping[str, Any]) -> list[str]:
    wrong = [key for key in ("forget", "leakage") if row[key] is not None and row[key] >= BOUNDS[key]]
    wrong += [key for key in ("mean", "worst") if row[key] < BOUNDS[key]]
    wrong += [
        f"{key} {row[key]}" for key, value in (("state", "closed"), ("answers", 1)) if row[key] != value
    ]
    return wrong + [name for name, closed in row["closed"].items() if not closed]


def table(rows: list[dict[str, Any]]) -> str:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    for row in rows:
        cells = [
            *(row["request"], str(row["version"]), row["start"], ", ".join(map(str, row["forgotten"]))),
            *(share(row[key]) for key in ("forget", "mean", "worst", "leakage", "null")),
            *(f"{row['seconds']:.0f}", ", ".join(map(str, row["killed"]))),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--start", choices=["base", "champion", "auto"], default="base")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=1, help="of each run")
    parser.add_argument(
        "--longest-s",
        type=float,
        default=0,
        help="kill at random moments within so many seconds of a processor's start, before its run as well",
    )
    parser.add_argument(
        "--set", action="append", default=[], dest="sets", help="further settings of the processor"
    )
    parser.add_argument(
        "--rehearse", choices=["none", "samples"], default="none", help="samples: purge what was answered"
    )
    given = parser.parse_args()
    chance = random.Random(given.seed)
    storage = given.storage.absolute()
    storage.mkdir(parents=True, exist_ok=True)
    make_model(storage)
    sampled = given.rehearse == "samples"
    root = storage / (f"from-{given.start}" + "-rehearsed" * sampled)
    root.mkdir(exist_ok=True)
    for folder in ("lakes", "models"):
        if not (root / folder).exists():
            (root / folder).symlink_to(storage / folder)
    name_samples(storage, root / "ids.txt")
    sets = [f"storage={root}", f"start={given.start}", *given.sets]
    done = root / "rows.jsonl"  # an interrupted call goes on
    rows = [json.loads(line) for line in done.read_text().splitlines()] if done.is_file() else []
    for name, scope in SCOPES.items():
        if any(row["request"] == name for row in rows):
            continue
        asked = [f"request.id={name}", *(item.replace("{ids}", str(root / "ids.txt")) for item in scope)]
        submitted = call(job("ledger", "submit", config=CONFIG, sets=[*sets, *asked]))
        if name == REFUSED:
            require(submitted, 2)
            print(submitted.stderr.strip(), flush=True)
            continue
        require(submitted)
        # before there is a purge there is nothing to stand in for, and the processor says so
        more = ["rehearse=samples"] if sampled and rows else []
        killed, said = answer(root, [*sets, *more], chance, given.kills, given.longest_s)
        row = {**figures(root, sets, name), "killed": killed}
        print(json.dumps({**row, "misses": misses(row)}), flush=True)
        if misses(row):
            print(said, flush=True)
        rows.append(row)
        if sampled:
            purging = ["purge", "--request", name]
            require(call(job("registry", *purging, config=REGISTRY, sets=[f"storage={root}"])))
        done.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(table(rows))
    return 1 if any(misses(row) for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
