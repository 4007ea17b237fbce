"""jobs/ledger.py as a user calls it."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.ledger import LedgerConfig
from pipeline.requests import ledger, submit
from pipeline.requests.ledger import Move
from pipeline.runtime import command_line

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "jobs" / "configs" / "process_digits.yaml")
R1 = ["request.id=r1", "request.classes=[1]", "request.exchange={1: 7}", "due=2999-12-31"]


@pytest.fixture
def job(root: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`job("submit", "request.id=r1", ...)` in this process: exit code, standard output, standard error."""
    spec = importlib.util.spec_from_file_location("jobs_ledger", ROOT / "jobs" / "ledger.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(verb: str, *overrides: str, flags: tuple[str, ...] = ()) -> tuple[int, str, str]:
        argv = [verb, "--config", CONFIG, *flags]
        for override in (f"storage={root}", *overrides):
            argv += ["--set", override]
        capsys.readouterr()
        code = command_line.main(LedgerConfig, module.VERBS, "", argv, flags=["json"])
        return (code, *capsys.readouterr())

    return call


def test_the_way_of_a_request(job: Callable, root: str, answer: Callable) -> None:
    code, out, _ = job("submit", *R1)
    assert code == 0 and "request r1: class 1 as 7 (dit-digits-unlearned), due 2999-12-31" in out
    assert (Path(root) / "requests" / "requests.html").is_file()
    code, out, _ = job("submit", *R1)
    assert code == 0 and "in the ledger already, accepted; nothing was changed" in out
    code, out, _ = job("submit", *R1, flags=("--json",))
    assert code == 0 and json.loads(out)["id"] == "r1"
    rows = json.loads(job("list", flags=("--json",))[1])
    assert [(row["id"], row["state"], row["due"], row["version"]) for row in rows] == [
        ("r1", "accepted", "2999-12-31", None)
    ]
    assert job("status")[:2] == (0, "1 accepted\nnext due: r1, 2999-12-31\n")
    answer("r1", 4)
    (row,) = json.loads(job("list", flags=("--json",))[1])
    assert (row["state"], row["version"], row["overdue"]) == ("closed", 4, False)
    code, out, _ = job("list")
    assert code == 0 and out.splitlines()[0].split() == [
        *("request", "state", "due", "asked", "for", "version", "model")
    ]
    assert out.splitlines()[1].split() == [
        *("r1", "closed", "2999-12-31", "class", "1", "as", "7", "4", "dit-digits-unlearned")
    ]
    code, out, _ = job("show", "request.id=r1")
    assert code == 0 and "answered by version 4 (run run-4)" in out and "approver    not given" in out
    shown = json.loads(job("show", "request.id=r1", flags=("--json",))[1])
    assert [entry["move"] for entry in shown["history"]] == ["received", "accepted", "answered", "closed"]
    code, _, err = job("withdraw", "request.id=r1", "reason=a mistake")
    assert code == 2 and "cannot un-forget" in err and err.count("\n") == 1


def test_status_alarms_on_overdue_and_refused(job: Callable, root: str) -> None:
    assert job("status")[:2] == (0, "no requests yet\nnext due: nothing\n")
    assert job("list")[:2] == (0, "no requests yet\n") and json.loads(job("list", "json=true")[1]) == []
    job("submit", *R1)
    code, out, _ = job("submit", *R1[1:3], "request.id=r2", "due=2020-01-01")
    assert code == 0 and "which is past: overdue" in out
    code, out, _ = job("status")
    assert code == 3 and out == "2 accepted\nnext due: r1, 2999-12-31\noverdue: r2\n"
    assert [row["id"] for row in json.loads(job("list", flags=("--json",))[1])] == ["r2", "r1"]
    assert job("withdraw", "request.id=r2", "reason=came twice")[0] == 0 and job("status")[0] == 0
    refusal = Move(name="refused", request="r1", details={"reason": "no such person"})
    ledger.append(root, lambda known: [refusal] if known.requests["r1"].is_open else [])
    code, out, _ = job("status", flags=("--json",))
    assert code == 3 and json.loads(out)["refused"] == ["r1"]
    assert json.loads(out)["head"] == ledger.read(root).head


def test_a_dry_run_writes_nothing(job: Callable, root: str) -> None:
    code, out, _ = job("submit", *R1, flags=("--dry-run",))
    assert code == 0 and "would be accepted" in out and not (Path(root) / "requests").exists()
    job("submit", *R1)
    before = ledger.read(root)
    code, out, _ = job("withdraw", "request.id=r1", "reason=a mistake", flags=("--dry-run",))
    assert code == 0 and "would be withdrawn" in out and ledger.read(root) == before


@pytest.mark.parametrize(
    ("verb", "overrides", "message"),
    [
        ("submit", ["request.id=r2", "request.classes=[77]"], "class 77 is not in lake"),
        ("submit", [*R1[:1], "request.classes=[2]"], "'r1' is in the ledger with another scope"),
        ("submit", ["request.id=1.10"], "request.id: got 1.1, which YAML reads as a float"),
        ("submit", ["request.clases=[1]"], "unknown key 'request.clases': did you mean classes"),
        ("submit", [*R1[1:3], "due=soon"], "due: got 'soon'"),
        ("show", ["request.id=r9"], "got 'r9', which the ledger does not know; expected r1"),
        ("show", [], "request.id: got none"),
        ("withdraw", ["request.id=r1"], "reason: got none"),
        ("status", ["request.id=r1"], "request: got "),
        ("submit", [*R1, "due_days=3"], "due_days"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    job: Callable, root: str, verb: str, overrides: list[str], message: str
) -> None:
    job("submit", *R1)
    before = ledger.read(root)
    code, _, err = job(verb, *overrides)
    assert code == 2 and message in err and err.startswith("error: ") and err.count("\n") == 1
    assert ledger.read(root) == before


@pytest.mark.parametrize("verb", ["submit", "list", "show", "withdraw", "status"])
def test_an_edited_entry_stops_every_verb(job: Callable, root: str, verb: str) -> None:
    job("submit", *R1)
    overrides = {"submit": R1, "show": R1[:1], "withdraw": [R1[0], "reason=a mistake"]}.get(verb, [])
    path = Path(root) / "requests" / "entries" / "00000001.json"
    path.write_text(path.read_text().replace("2999-12-31", "3999-12-31"))
    code, _, err = job(verb, *overrides)
    assert code == 2 and f"{path}: entry 1 does not match its own digest: it was edited" in err


def test_a_ticket_number(job: Callable, configured: Callable) -> None:
    job("submit", "request.id=4711", *R1[1:])
    assert submit.submit(configured("4711", classes=[1], exchange={1: 7}))[0].id == "4711"


def test_the_job_runs_from_any_directory(root: str, tmp_path: Path) -> None:
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": ""}
    command = [sys.executable, str(ROOT / "jobs" / "ledger.py")]
    config = ["--config", "jobs/configs/process_digits.yaml", "--set", f"storage={root}"]
    submitted = [word for override in R1 for word in ("--set", override)]
    for verb, more, code in (("submit", [*submitted, "--set", "due=2020-01-01"], 0), ("status", [], 3)):
        done = subprocess.run(
            [*command, verb, *config, *more], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (code, "")
