"""Deletion requests from submission to audit, by the jobs; the one that answers them in a process of its own.
The weights were never trained, so the bounds are none: what is tested is the flow."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.ray]
SMALL = [
    *("unlearn.optim.batch_size=16", "unlearn.optim.max_steps=4", "unlearn.partition={lanes: 4}"),
    *("unlearn.train.cpus_per_worker=0.4", "unlearn.evaluate.every=2", "unlearn.evaluate.patience_steps=2"),
    *("unlearn.evaluate.samples=20", "unlearn.evaluate.retain_samples=2"),
    *("unlearn.evaluate.final_samples=100", "unlearn.evaluate.final_retain_samples=4"),
    *("unlearn.evaluate.sampler_steps=2", "unlearn.evaluate.final_sampler_steps=3"),
    *("unlearn.evaluate.retention_floor=null", "audit.samples=20"),
]
PASSING = {
    **{"max_forget_fraction": 1.0, "max_leakage": 1.0, "min_retain_accuracy": 0.0, "min_class_accuracy": 0.0},
    **{"min_judge_accuracy": None, "min_patience_steps": 0},
}


@pytest.fixture
def call(
    here: Callable[..., Any], tmp_path: Path, fill_untrained: Callable[[str], None]
) -> Callable[..., Any]:
    root = tmp_path / "runs"
    fill_untrained(str(root))

    def run(name: str, *overrides: str, by: Callable[..., Any] = here, **how: Any) -> Any:
        return by(name, "process_digits", f"storage={root}", *overrides, **how)

    return run


def test_from_submission_to_audit(call: Callable[..., Any], job: Callable[..., Any], tmp_path: Path) -> None:
    passing = f"unlearn.gate={json.dumps(PASSING)}"
    nothing = call("process_requests")
    assert (nothing.code, nothing.out) == (
        0,
        "nothing is open: every request to dit-digits-unlearned is answered\n",
    ), nothing.err
    for name, label, exchange in (("r1", 1, 7), ("r3", 3, 5)):
        scope = f"request={{id: {name}, classes: [{label}], exchange: {{{label}: {exchange}}}}}"
        assert call("ledger", scope, "due=2999-01-01", verb="submit").code == 0
    planned = call("process_requests", *SMALL, passing, dry_run=True)
    assert planned.code == 0 and "open: r1, r3; answered before: none" in planned.out, planned.err
    assert not list((tmp_path / "runs").glob("runs/*")), "nothing was written"

    answered = call("process_requests", *SMALL, passing, by=job)
    assert answered.code == 0, answered.out + answered.err
    assert (
        "version 1 serves now" in answered.out
        and "every request to dit-digits-unlearned is answered" in answered.out
    )
    rows = json.loads(call("ledger", "json=true", verb="list").out)
    assert {(row["id"], row["state"], row["version"]) for row in rows} == {
        ("r1", "closed", 1),
        ("r3", "closed", 1),
    }
    (run,) = (tmp_path / "runs" / "runs").glob("requests-*")
    result = json.loads((run / "result.json").read_text())
    assert [block["id"] for block in result["requests"]] == ["r1", "r3"]
    assert (tmp_path / "runs/registry/dit-digits-unlearned/v1/certificate.json").is_file()

    audited = call("ledger", *SMALL, passing, verb="audit")
    assert audited.code == 0 and "measured again on version 1: 2 passed" in audited.out, audited.err
    # a bound that nothing meets
    strict = call("ledger", *SMALL, 'unlearn.gate={"max_forget_fraction": 0.0}', verb="audit")
    assert strict.code == 3 and strict.out.count("failed, and open again: request r") == 2, strict.err
    rows = json.loads(call("ledger", "json=true", verb="list").out)
    assert {row["state"] for row in rows} == {"reopened"}
    refused = call("process_requests", *SMALL, "start=base")
    assert refused.code == 3 and "left: request r1: " in refused.out, refused.out + refused.err


def test_bad_input(call: Callable[..., Any], tmp_path: Path) -> None:
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for override, message in (
        ("unlearn.request.classes=[1]", "unlearn.request.classes: got [1], which the requests"),
        ("unlearn.optim.speed=1", "unlearn: unknown key 'optim.speed'"),
        ("start=nowhere", "start: got 'nowhere'"),
        ("request.id=r1", "unknown key 'request'"),
        ("lake=nope", "no lake at "),
    ):
        said = call("process_requests", override)
        assert said.code == 2 and said.err.startswith("error: ") and message in said.err
        assert said.err.count("\n") == 1
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
