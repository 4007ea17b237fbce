"""The log of moves: a pure fold, safe against two writers and against tampering."""

import datetime
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline import hash_chain, storage
from pipeline.errors import InputError
from pipeline.hash_chain import LogError
from pipeline.requests import ledger, submit
from pipeline.requests.ledger import MOVES, Ledger, Move, Terms

DAY = datetime.date(2026, 6, 1)
TERMS = Terms(
    model_name="m",
    lake="digits",
    classes=[1],
    exchange={1: [7]},
    samples=None,
    received=DAY,
    due=DAY + datetime.timedelta(days=30),
    legal_basis="GDPR 17",
    approver="dpo",
)
RECEIVED = Move(name="received", request="r1", details=TERMS.model_dump(mode="json"))
DETAILS = {
    "version": 3,
    "run_id": "run-3",
    "passed": True,
    "reason": "because",
}


def write(root: str, *moves: Move) -> Ledger:
    """Append `moves` one after another, whatever the ledger holds."""
    start = len(ledger.read(root).entries)
    return ledger.append(root, lambda known: moves[len(known.entries) - start :])


def moved(name: str, request: str = "r1") -> Move:
    if name == "received":
        return Move(name=name, request=request, details=RECEIVED.details)
    return Move(name=name, request=request, details=DETAILS if name != "accepted" else {})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert ledger.read(root).requests == {} and ledger.read(root).head == {"entries": 0, "digest": ""}
    known = write(root, *map(moved, ("received", "accepted", "answered", "closed")))
    assert ledger.read(root) == known
    request = known.find("r1")
    assert (request.terms, request.state, request.version) == (TERMS, "closed", 3)
    assert known.head == {"entries": 4, "digest": known.entries[-1].digest}
    assert storage.read_json(f"{root}/requests/head.json") == known.head
    assert ledger.fold(known.entries) == known, "the state is a function of the entries"


@pytest.mark.parametrize(
    ("names", "state", "version"),
    [
        (["received"], "received", None),
        (["received", "accepted", "postponed"], "accepted", None),
        (["received", "accepted", "refused"], "refused", None),
        (["received", "accepted", "refused", "withdrawn"], "withdrawn", None),
        (["received", "accepted", "refused", "reopened"], "reopened", None),
        (["received", "accepted", "answered", "audited", "closed"], "closed", 3),
        (["received", "accepted", "answered", "closed", "audited", "reopened"], "reopened", None),
        (["received", "accepted", "answered", "closed", "reopened", "answered"], "answered", 3),
    ],
)
def test_states(tmp_path: Path, names: list[str], state: str, version: int | None) -> None:
    request = write(str(tmp_path), *map(moved, names)).find("r1")
    assert (request.state, request.version) == (state, version)
    assert [entry.move for entry in request.history] == names
    assert request.is_open == (state in ("received", "accepted", "reopened"))


def test_a_move_is_made_from_the_states_that_the_table_names_and_no_other(tmp_path: Path) -> None:
    """Every state is reached, and from it every move is tried."""
    ways = {
        None: [],
        "received": ["received"],
        "accepted": ["received", "accepted"],
        "answered": ["received", "accepted", "answered"],
        "closed": ["received", "accepted", "answered", "closed"],
        "refused": ["received", "refused"],
        "withdrawn": ["received", "withdrawn"],
        "reopened": ["received", "refused", "reopened"],
    }
    tried = 0
    for state, way in ways.items():
        for move in MOVES:
            root = str(tmp_path / f"{state}-{move}")
            write(root, *map(moved, way))
            if state in MOVES[move][0]:
                write(root, moved(move))
            else:
                with pytest.raises(LogError, match=rf"entry {len(way) + 1} .* cannot be {move}"):
                    write(root, moved(move))
                assert len(ledger.read(root).entries) == len(way), "nothing was written"
            tried += 1
    assert tried == 8 * len(MOVES)


def test_a_move_without_what_it_has_to_say_is_refused(tmp_path: Path) -> None:
    write(str(tmp_path), moved("received"), moved("accepted"))
    with pytest.raises(LogError, match="answered without its version"):
        write(str(tmp_path), Move(name="answered", request="r1"))
    with pytest.raises(LogError, match="its version is '1', expected a int"):
        write(str(tmp_path), Move(name="answered", request="r1", details={"version": "1", "run_id": "r"}))
    with pytest.raises(LogError, match="refused without its reason"):
        write(str(tmp_path), Move(name="refused", request="r1"))


def test_overdue_is_after_the_due_date_while_no_version_that_answers_it_serves(tmp_path: Path) -> None:
    waiting = write(str(tmp_path / "a"), *map(moved, ("received", "accepted"))).find("r1")
    assert not waiting.is_overdue(TERMS.due)
    assert waiting.is_overdue(TERMS.due + datetime.timedelta(days=1))
    answered = write(str(tmp_path / "b"), *map(moved, ("received", "accepted", "answered"))).find("r1")
    assert answered.is_overdue(TERMS.due + datetime.timedelta(days=1))
    closed = write(str(tmp_path / "b"), moved("closed")).find("r1")
    assert not closed.is_overdue(TERMS.due + datetime.timedelta(days=1000))


@pytest.fixture
def five(tmp_path: Path) -> Path:
    """The folder of a ledger with five entries."""
    write(str(tmp_path), *map(moved, ("received", "accepted", "answered", "closed", "audited")))
    return tmp_path / "requests"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rename(folder: Path, old: int, new: int) -> None:
    (folder / ledger.file_name(old)).rename(folder / ledger.file_name(new))


def swap(folder: Path) -> None:
    rename(folder, 2, 99)
    rename(folder, 3, 2)
    rename(folder, 99, 3)


def redone(folder: Path) -> None:
    """An entry edited with its digest made again, as one would who knows how."""
    path = folder / ledger.file_name(3)
    entry = ledger.Entry(**(json.loads(path.read_text()) | {"by": "nobody@nowhere"}))
    change(path, by="nobody@nowhere", digest=entry.computed_digest())


TAMPERING: dict[str, tuple[Callable[[Path], Any], str]] = {
    "edited": (
        lambda folder: change(folder / "00000003.json", by="nobody@nowhere"),
        r"00000003\.json: entry 3 does not match its own digest",
    ),
    "edited, digest made again": (redone, r"00000004\.json: entry 4 does not follow from entry 3"),
    "one removed": (
        lambda folder: (folder / "00000002.json").unlink(),
        r"00000003\.json: found entry 3, expected number 2: an entry was removed",
    ),
    "another order": (swap, r"00000002\.json: found entry 3, expected number 2"),
    "cut at the end": (
        lambda folder: (folder / "00000005.json").unlink(),
        r"head\.json: the ledger of requests had 5 entries, got 4: its end was cut off",
    ),
    "all gone": (lambda folder: shutil.rmtree(folder), r"had 5 entries, got 0"),
    "not JSON": (
        lambda folder: (folder / "00000001.json").write_text("{"),
        r"00000001\.json: not an entry of the ledger",
    ),
    "another key": (
        lambda folder: change(folder / "00000001.json", more=1),
        r"00000001\.json: not an entry of the ledger",
    ),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_a_tampered_log_is_refused_and_says_where(five: Path, name: str) -> None:
    tamper, message = TAMPERING[name]
    tamper(five / "entries")
    with pytest.raises(LogError, match=message) as caught:
        ledger.read(str(five.parent))
    assert "\n" not in str(caught.value)


def test_the_end_is_not_cut_off_by_taking_the_head_away_as_well(five: Path) -> None:
    (five / "head.json").unlink()
    (five / "entries" / "00000005.json").unlink()
    with pytest.raises(LogError, match="had 5 entries, got 4: its end was cut off"):
        ledger.read(str(five.parent))


def test_a_log_that_was_written_anew_does_not_match_its_head(five: Path) -> None:
    head = (five / "head.json").read_bytes()
    shutil.rmtree(five / "entries")
    (five / "head.json").unlink()
    (five / "blocked.json").unlink()
    write(str(five.parent), *map(moved, ("received", "accepted", "answered", "closed", "audited")))
    write(str(five.parent), moved("audited"))
    (five / "head.json").write_bytes(head.replace(b'"digest": "', b'"digest": "f'))
    with pytest.raises(LogError, match=r"head\.json: entry 5 .* is not the one that was written"):
        ledger.read(str(five.parent))


def test_an_older_head_is_no_damage_and_is_mended(five: Path) -> None:
    """As it is after a kill between an entry and the head."""
    first = json.loads((five / "entries" / "00000004.json").read_text())
    storage.write_json(str(five / "head.json"), {"entries": 4, "digest": first["digest"]})
    assert len(ledger.read(str(five.parent)).entries) == 5
    known = ledger.append(str(five.parent), lambda known: [])
    assert json.loads((five / "head.json").read_text()) == known.head == ledger.read(str(five.parent)).head


@pytest.mark.parametrize("scheme", ["local", "memory"])
def test_many_writers_at_once_lose_nothing(tmp_path: Path, scheme: str) -> None:
    root = str(tmp_path) if scheme == "local" else f"memory://{tmp_path.name}"

    def work(writer: int) -> None:
        for number in range(5):
            request = f"w{writer}-{number}"

            def decide(known: Ledger, request: str = request) -> Sequence[Move]:
                wanted = [moved("received", request), moved("accepted", request)]
                done = known.requests.get(request)
                return wanted[len(done.history) if done else 0 :]

            ledger.append(root, decide)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    known = ledger.read(root)
    assert len(known.entries) == 40 and {request.state for request in known.requests.values()} == {"accepted"}
    assert storage.read_json(f"{root}/requests/head.json") == known.head


def test_the_second_of_two_decides_again_on_what_the_first_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, seen = str(tmp_path), []
    original = hash_chain.append

    def beaten(*arguments: Any, **fields: Any) -> Any:
        monkeypatch.setattr(hash_chain, "append", original)
        write(root, moved("received", "other"))
        return original(*arguments, **fields)

    def decide(known: Ledger) -> Sequence[Move]:
        seen.append(sorted(known.requests))
        return [] if "r1" in known.requests else [RECEIVED]

    monkeypatch.setattr(hash_chain, "append", beaten)
    ledger.append(root, decide)
    assert seen == [[], ["other"], ["other", "r1"]]


class KilledError(BaseException):
    """Nothing in between catches it, as nothing catches SIGKILL."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("attribute", ["create", "write_bytes"])
def test_a_killed_submission_is_before_or_after_and_completed_by_another(
    root: str, configured: Callable, monkeypatch: pytest.MonkeyPatch, attribute: str, call: int, when: str
) -> None:
    config = configured("r1", classes=[1], exchange={1: 7})
    calls, original = 0, getattr(storage, attribute)

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and when == "before":
            raise KilledError
        value = original(*arguments, **options)
        if calls == call:
            raise KilledError
        return value

    with monkeypatch.context() as patch:
        patch.setattr(storage, attribute, dying)
        try:
            submit.submit(config)
        except KilledError:
            pass
        else:
            assert calls < call
    state = ledger.read(root).requests
    assert not state or state["r1"].state in ("received", "accepted")
    request, _ = submit.submit(config)
    assert request.state == "accepted" and [entry.move for entry in request.history] == [
        "received",
        "accepted",
    ]
    assert storage.read_json(f"{root}/requests/head.json") == ledger.read(root).head


def test_an_unknown_request_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected none yet"):
        ledger.read(str(tmp_path)).find("r9")
    with pytest.raises(InputError, match=r"got 'r9', which the ledger does not know; expected r1"):
        write(str(tmp_path), moved("received")).find("r9")
    with pytest.raises(InputError, match=r"request\.id: got none"):
        ledger.read(str(tmp_path)).find(None)
