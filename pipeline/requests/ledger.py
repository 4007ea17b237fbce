"""The ledger: every deletion request and every move it made, as a chain of hashes under the storage root.

One JSON file a move, `<storage>/requests/entries/00000001.json`. What a request is now is a pure function of
its entries. `head.json` holds the number and digest of the last entry: with it a log whose end was cut off is
told from one that never was longer, and a certificate names it. `blocked.json` is what serving programs read.
"""

import contextlib
import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import hash_chain, storage
from pipeline.errors import InputError
from pipeline.hash_chain import Link, LogError
from pipeline.requests import block_list

FOLDER, ENTRIES, HEAD = "requests", "entries", "head.json"
State = Literal["received", "accepted", "answered", "closed", "refused", "withdrawn", "reopened"]
OPEN: tuple[State, ...] = ("received", "accepted", "reopened")
ANSWERED: tuple[State, ...] = ("answered", "closed")
# move -> the states it may be made from, the state it leads to (None: it stays)
MOVES: dict[str, tuple[tuple[State | None, ...], State | None]] = {
    "received": ((None,), "received"),
    "accepted": (("received",), "accepted"),
    "postponed": (OPEN, None),  # an attempt that did not answer it, with the reason
    "answered": (("accepted", "reopened"), "answered"),
    "closed": (("answered",), "closed"),
    "audited": (ANSWERED, None),  # measured again, on fresh seeds or other weights
    "reopened": ((*ANSWERED, "refused"), "reopened"),
    "refused": (OPEN, "refused"),
    "withdrawn": ((*OPEN, "refused"), "withdrawn"),
}
# what the details of a move have to hold
DETAILS = {
    "answered": ("version", "run_id"),
    "closed": ("version",),
    "audited": ("version", "passed"),
    **dict.fromkeys(("postponed", "reopened", "refused", "withdrawn"), ("reason",)),
}
KINDS = {"version": int, "run_id": str, "passed": bool, "reason": str}


class NamedSamples(BaseModel):
    """Sample ids of a request: where they are listed, and what the ledger keeps of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    uri: str  # text file with one id a line
    count: int
    digest: str  # SHA-256 of the sorted ids as JSON, as in a partition's key
    classes: dict[int, int]  # class -> how many of the ids are its rows


class Terms(BaseModel):
    """What was asked for, by when, and on whose word: the details of a request's first entry."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    model_name: str
    lake: str  # name or URI
    classes: list[int]  # to be forgotten whole
    exchange: dict[int, list[int]]  # forgotten class -> what its label is to give from now on
    samples: NamedSamples | None
    received: datetime.date
    due: datetime.date
    legal_basis: str
    approver: str

    @property
    def scope(self) -> dict[str, Any]:
        """What two submissions under one id have to agree on."""
        return {
            "model_name": self.model_name,
            "lake": self.lake,
            "classes": self.classes,
            "exchange": self.exchange,
            "samples": self.samples and self.samples.digest,
        }


@dataclass(frozen=True, kw_only=True)
class Entry(Link):
    """One move of one request. `details` are a request's terms, a version, a reason."""

    move: str
    request: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request as it stands after its entries."""

    id: str
    terms: Terms
    state: State
    history: tuple[Entry, ...]

    @property
    def is_open(self) -> bool:
        return self.state in OPEN

    @property
    def is_answered(self) -> bool:
        return self.state in ANSWERED

    @property
    def version(self) -> int | None:
        """The version that answered it; None while it is not answered."""
        answer = self.last("answered")
        return int(answer.details["version"]) if answer is not None and self.is_answered else None

    @property
    def reason(self) -> str:
        """Why it is where it is: of a refusal, a withdrawal, a reopening, the last attempt."""
        return str(self.history[-1].details.get("reason", ""))

    def last(self, move: str) -> Entry | None:
        return next((entry for entry in reversed(self.history) if entry.move == move), None)

    def is_overdue(self, today: datetime.date) -> bool:
        """Without a version that serves after its due date, which itself is still in time: open, or answered
        by a version that nobody has promoted."""
        return (self.is_open or self.state == "answered") and today > self.terms.due


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All requests by id, in the order of their receipt, and the entries they were folded from."""

    entries: tuple[Entry, ...]
    requests: dict[str, Request]

    @property
    def head(self) -> dict[str, Any]:
        """Number and digest of the last entry: what a certificate names."""
        return head_of(self.entries)

    def find(self, request_id: str | None) -> Request:
        if request_id is None:
            raise InputError("request.id: got none, expected the id of a request: --set request.id=<id>")
        if request_id not in self.requests:
            known = ", ".join(list(self.requests)[-10:]) or "none yet"
            raise InputError(
                f"request.id: got {request_id!r}, which the ledger does not know; expected {known}"
            )
        return self.requests[request_id]


@dataclass(frozen=True, kw_only=True)
class Move:
    """An entry that is not written yet."""

    name: str
    request: str
    details: dict[str, Any] = field(default_factory=dict)


def folder(storage_root: str) -> str:
    return storage.join(storage_root, FOLDER)


def today() -> datetime.date:
    """The date in UTC, which every due date is held against."""
    return datetime.datetime.now(datetime.UTC).date()


def read(storage_root: str) -> Ledger:
    """The ledger under `storage_root`, empty where there is none. Raises `LogError` for one that was edited,
    cut or put in another order, and says where."""
    head_uri = storage.join(folder(storage_root), HEAD)
    # before the entries: one that is written meanwhile makes them longer than it says, never shorter
    heads = _heads(storage_root)
    entries = hash_chain.read(storage.join(folder(storage_root), ENTRIES), Entry, "ledger of requests")
    for head in heads:
        number = head["entries"]
        if number > len(entries):
            raise LogError(
                f"{head_uri}: the ledger of requests had {number} entries, got {len(entries)}: its end was"
                " cut off; restore the folder from a copy"
            )
        if number and head["digest"] not in (None, entries[number - 1].digest):
            raise LogError(
                f"{head_uri}: entry {number} of the ledger of requests is not the one that was written;"
                " restore the folder from a copy"
            )
    return fold(entries)


def read_whole(storage_root: str) -> Ledger:
    """`read`, and the block list that was made of it held against it."""
    snapshot = read(storage_root)
    block_list.require_true(folder(storage_root), snapshot)
    return snapshot


def fold(entries: Sequence[Entry]) -> Ledger:
    """Every request as its entries leave it. Raises `LogError` for a move that its state does not allow."""
    requests: dict[str, Request] = {}
    for entry in entries:
        earlier = requests.get(entry.request)
        state = _state_after(entry, earlier)
        history = (*(earlier.history if earlier else ()), entry)
        try:
            terms = earlier.terms if earlier else Terms.model_validate(entry.details)
        except ValidationError as error:
            problem = error.errors()[0]
            raise LogError(
                f"entry {entry.number} of the ledger of requests: {'.'.join(map(str, problem['loc']))}:"
                f" {problem['msg']}"
            ) from error
        requests[entry.request] = Request(id=entry.request, terms=terms, state=state, history=history)
    return Ledger(entries=tuple(entries), requests=requests)


def append(storage_root: str, decide: Callable[[Ledger], Sequence[Move]]) -> Ledger:
    """Write the moves that `decide` makes of the ledger as it is; the ledger afterwards.

    Each is committed by itself, and `decide` is asked again, with the ledger as it is by then, until it has
    nothing more to do: killed in between, or come second after another writer, it goes on from what is there.
    So `decide` returns what is still missing, and raises for what may not be.
    """
    ledger = read(storage_root)
    while moves := decide(ledger):
        move = moves[0]
        fields: dict[str, Any] = {"move": move.name, "request": move.request, "details": move.details}
        draft = Entry(number=len(ledger.entries) + 1, time="", by="", previous="", **fields)
        _state_after(draft, ledger.requests.get(move.request))
        uri = storage.join(folder(storage_root), ENTRIES, file_name(draft.number))
        entry = hash_chain.append(uri, ledger.entries, Entry, **fields)
        if entry is None:
            ledger = read(storage_root)
        else:
            ledger = fold([*ledger.entries, entry])
    # also when there was nothing to do: whoever wrote the last entry may have been killed right after it
    blocked = storage.join(folder(storage_root), block_list.BLOCKED)
    if _read_head(storage.join(folder(storage_root), HEAD))["entries"] < len(ledger.entries) or (
        ledger.entries and not storage.exists(blocked)
    ):
        _write_head(storage_root, ledger)
    return ledger


def file_name(number: int) -> str:
    return f"{number:08d}.json"


def head_of(entries: Sequence[Entry]) -> dict[str, Any]:
    return {"entries": len(entries), "digest": entries[-1].digest if entries else ""}


def _state_after(entry: Entry, request: Request | None) -> State:
    state = request.state if request else None
    if entry.move not in MOVES or state not in MOVES[entry.move][0]:
        raise LogError(
            f"entry {entry.number} of the ledger of requests: request {entry.request!r}, which is"
            f" {state or 'not known'}, cannot be {entry.move}"
        )
    for key in DETAILS.get(entry.move, ()):
        if key not in entry.details:
            raise LogError(f"entry {entry.number} of the ledger of requests: {entry.move} without its {key}")
        if type(entry.details[key]) is not KINDS[key]:
            raise LogError(
                f"entry {entry.number} of the ledger of requests: its {key} is {entry.details[key]!r},"
                f" expected a {KINDS[key].__name__}"
            )
    following = MOVES[entry.move][1] or state
    assert following is not None, "a move that stays is made from a state"
    return following


def _read_head(uri: str) -> dict[str, Any]:
    if not storage.exists(uri):
        return head_of([])
    try:
        head = storage.read_json(uri)
        return {"entries": int(head["entries"]), "digest": str(head["digest"])}
    except (ValueError, KeyError, TypeError) as error:
        raise LogError(
            f"{uri}: not the head of a ledger, it was edited or damaged; restore the folder from a copy"
        ) from error


def _heads(storage_root: str) -> list[dict[str, Any]]:
    """The head, and how many entries the block list, which is written before, knows of: whoever cuts the
    end of the ledger off has to change both."""
    heads = [_read_head(storage.join(folder(storage_root), HEAD))]
    uri = storage.join(folder(storage_root), block_list.BLOCKED)
    # one that is damaged is no head: programs that serve say so, and the next move writes it again
    with contextlib.suppress(ValueError, KeyError, TypeError, FileNotFoundError):
        heads.append({"entries": int(storage.read_json(uri)["entries"]), "digest": None})
    return heads


def _write_head(storage_root: str, ledger: Ledger) -> None:
    """Note the last entry of `ledger`, or the one that came after it meanwhile, and first what is blocked
    from then on: of two writers the slower one may not leave an older head."""
    while True:
        storage.write_json(
            storage.join(folder(storage_root), block_list.BLOCKED), block_list.document(ledger)
        )
        storage.write_json(storage.join(folder(storage_root), HEAD), ledger.head)
        following = file_name(len(ledger.entries) + 1)
        if not storage.exists(storage.join(folder(storage_root), ENTRIES, following)):
            return
        ledger = read(storage_root)


def as_json(request: Request, day: datetime.date) -> dict[str, Any]:
    """Everything of `request`, as plain values."""
    return {
        "id": request.id,
        "state": request.state,
        "due": request.terms.due.isoformat(),
        "overdue": request.is_overdue(day),
        "version": request.version,
        "reason": request.reason,
        **request.terms.model_dump(mode="json", exclude={"due"}),
        "history": [asdict(entry) for entry in request.history],
    }
