"""Measuring answered requests again: what is noted, what is opened again, what cannot be measured."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.config import Gate, parse
from pipeline.config.ledger import LedgerConfig
from pipeline.data import tombstones
from pipeline.data.lake import lake_uri, read_lake
from pipeline.data.parquet_shards import read_column
from pipeline.errors import InputError
from pipeline.evaluation.confidence import proportion
from pipeline.requests import audit, ledger, submit
from pipeline.requests.audit import Audit
from pipeline.requests.ledger import Move
from pipeline.requests.merge import Union
from pipeline.requests.plan import Version


class Measured:
    """Of each class, how many of 200 images are still of it; and the attack on named samples."""

    def __init__(self, hits: Mapping[int, int], auc: float | None = None) -> None:
        self.hits, self.auc, self.seeds = hits, auc, []  # type: ignore[var-annotated]

    def __call__(self, version: int, union: Union, seed: int) -> dict[str, Any]:
        self.seeds.append(seed)
        shares = {str(label): proportion(self.hits[label], 200).to_dict() for label in union.classes}
        return {
            "forget_fraction": {"per_class": shares},
            "membership": self.auc
            and {"auc": self.auc, "low": self.auc - 0.1, "high": min(1.0, self.auc + 0.1)},
        }


@pytest.fixture
def closed(root: str, configured: Callable[..., LedgerConfig], answer: Callable[..., Any]) -> None:
    """Two closed requests: 1 -> 7 by version 1, 3 -> 5 by version 2."""
    for version, (name, label, exchange) in enumerate([("r1", 1, 7), ("r3", 3, 5)], 1):
        submit.submit(configured(name, classes=[label], exchange={label: exchange}))
        answer(name, version)


@pytest.fixture
def look(root: str) -> Callable[..., Audit]:
    def call(measure: Measured, champion: Version | None = None) -> Audit:
        config = parse(LedgerConfig, {"storage": root})
        return audit.audit(config, champion or Version(number=2, request_ids=("r1", "r3")), measure, Gate())

    return call


def moves(root: str, name: str) -> list[str]:
    return [entry.move for entry in ledger.read(root).requests[name].history[4:]]


@pytest.mark.usefixtures("closed")
def test_what_holds_is_noted(root: str, look: Callable[..., Audit]) -> None:
    measure = Measured({1: 0, 3: 2})
    assert look(measure) == Audit(version=2, passed=("r1", "r3"), failed={}, unmeasured=())
    assert moves(root, "r1") == moves(root, "r3") == ["audited"]
    look(measure)
    assert moves(root, "r1") == ["audited", "audited"] and len(set(measure.seeds)) == 2, "fresh noise"
    page = Path(root, "requests", "requests.html").read_text()
    assert "2 measured again since" in page


@pytest.mark.usefixtures("closed")
def test_what_came_back_is_open_again(root: str, look: Callable[..., Audit]) -> None:
    outcome = look(Measured({1: 12, 3: 0}))
    assert outcome.passed == ("r3",) and list(outcome.failed) == ["r1"]
    assert "class 1 is sampled 6.0% of 200 times, at most 10.2% with 95 % confidence" in outcome.failed["r1"]
    assert moves(root, "r1") == ["audited", "reopened"] and moves(root, "r3") == ["audited"]
    request = ledger.read(root).requests["r1"]
    assert request.is_open and request.reason == outcome.failed["r1"]


@pytest.mark.usefixtures("closed")
def test_a_version_that_was_not_made_to_honour_a_request(root: str, look: Callable[..., Audit]) -> None:
    """After a rollback that somebody insisted on."""
    outcome = look(Measured({1: 0, 3: 200}), Version(number=1, request_ids=("r1",)))
    assert outcome.passed == ("r1",) and moves(root, "r3") == ["audited", "reopened"]


@pytest.mark.usefixtures("closed")
def test_what_waits_for_approval_is_not_measured(
    root: str, look: Callable[..., Audit], configured: Callable[..., LedgerConfig]
) -> None:
    submit.submit(configured("r0", classes=[0], exchange={0: 6}))
    answer = Move(name="answered", request="r0", details={"version": 3, "run_id": "run-3"})
    ledger.append(root, lambda known: [answer] if known.requests["r0"].is_open else [])
    assert look(Measured({1: 0, 3: 0})).passed == ("r1", "r3")


@pytest.mark.usefixtures("closed")
def test_an_audit_that_was_ended_is_completed(root: str, look: Callable[..., Audit]) -> None:
    note = Move(name="audited", request="r1", details={"version": 2, "passed": False, "reason": "9 %"})
    ledger.append(root, lambda known: [note] if known.requests["r1"].history[-1].move == "closed" else [])
    assert look(Measured({3: 0})).passed == ("r3",)
    assert moves(root, "r1") == ["audited", "reopened"] and ledger.read(root).requests["r1"].reason == "9 %"


def test_named_samples(
    root: str,
    configured: Callable[..., LedgerConfig],
    answer: Callable[..., Any],
    look: Callable[..., Audit],
    tmp_path: Path,
) -> None:
    lake = read_lake(lake_uri(root, "digits"))
    names = read_column(lake.uri, lake.shards([2])[0], "sample_id")
    storage.write_text(str(tmp_path / "ids"), "\n".join(names[:3]))
    submit.submit(configured("s2", sample_ids=str(tmp_path / "ids")))
    answer("s2", 1)
    champion = Version(number=1, request_ids=("s2",))
    assert look(Measured({}, auc=0.52), champion).passed == ("s2",)
    assert "AUC 0.85" in look(Measured({}, auc=0.85), champion).failed["s2"]
    answer("s2", 2)
    tombstones.bury(root, "s2", [], labels=[2])
    outcome = look(Measured({}), Version(number=2, request_ids=("s2",)))
    assert outcome.unmeasured == ("s2",) and ledger.read(root).requests["s2"].state == "closed"


def test_nothing_to_measure(root: str, look: Callable[..., Audit]) -> None:
    with pytest.raises(InputError, match="no request was answered yet"):
        look(Measured({}))
    with pytest.raises(InputError, match="no version serves"):
        audit.audit(parse(LedgerConfig, {"storage": root}), None, Measured({}), Gate())
