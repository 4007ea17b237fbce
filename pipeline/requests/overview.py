"""What people read of the ledger: a request in a few words, the list, the counts that an alarm goes by."""

import datetime
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.requests.ledger import Entry, Ledger, Request, Terms
from pipeline.requests.merge import open_requests

HEADINGS = ("request", "state", "due", "asked for", "version", "model")


def scope_text(terms: Terms) -> str:
    """The scope in a few words: class 1 as 7, 12 samples of class 2."""
    classes = [
        f"class {label}"
        + (f" as {' or '.join(map(str, terms.exchange[label]))}" if label in terms.exchange else "")
        for label in terms.classes
    ]
    if terms.samples is None:
        return ", ".join(classes)
    of = ", ".join(map(str, terms.samples.classes))
    plural = "s" * (terms.samples.count > 1)
    return ", ".join([*classes, f"{terms.samples.count} sample{plural} of class {of}"])


def other_models(ledger: Ledger, request: Request) -> list[str]:
    """The models of the other requests, where none of them is to the model of this one: perhaps its name is
    mistyped."""
    names = {other.terms.model_name for other in ledger.requests.values() if other.id != request.id}
    return [] if request.terms.model_name in names else sorted(names)


def state_text(request: Request, today: datetime.date) -> str:
    if not request.is_overdue(today):
        postponed = request.is_open and request.history[-1].move == "postponed"
        return f"{request.state}, postponed" if postponed else request.state
    return "answered, overdue" if request.is_answered else "overdue"


def in_order(ledger: Ledger) -> list[Request]:
    """What waits, earliest due date first; then everything else, the last moved first."""
    others = [request for request in ledger.requests.values() if not request.is_open]
    others.sort(key=lambda request: -request.history[-1].number)
    return [*open_requests(ledger.requests.values()), *others]


def table(ledger: Ledger, today: datetime.date) -> list[tuple[str, ...]]:
    """The list as cells of text, headings first."""
    return [
        HEADINGS,
        *(
            (
                request.id,
                state_text(request, today),
                request.terms.due.isoformat(),
                scope_text(request.terms),
                "-" if request.version is None else str(request.version),
                request.terms.model_name,
            )
            for request in in_order(ledger)
        ),
    ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def status(ledger: Ledger, today: datetime.date) -> dict[str, Any]:
    """Counts by state, what is overdue or refused, and what is due next."""
    waiting = open_requests(ledger.requests.values())
    following = [request for request in waiting if not request.is_overdue(today)]
    return {
        "counts": dict(sorted(Counter(request.state for request in ledger.requests.values()).items())),
        "overdue": [request.id for request in ledger.requests.values() if request.is_overdue(today)],
        "refused": [request.id for request in ledger.requests.values() if request.state == "refused"],
        "next_due": (
            {"id": following[0].id, "due": following[0].terms.due.isoformat()} if following else None
        ),
        "head": ledger.head,
    }


def details(request: Request, today: datetime.date) -> list[str]:
    """Everything of one request, a line each, its history last."""
    terms = request.terms
    facts = {
        "state": state_text(request, today) + (f" ({request.reason})" if request.reason else ""),
        "asked for": scope_text(terms),
        "model": terms.model_name,
        "lake": terms.lake,
        "received": terms.received.isoformat(),
        "due": terms.due.isoformat(),
        "version": "none yet" if request.version is None else str(request.version),
        "legal basis": terms.legal_basis or "not given",
        "approver": terms.approver or "not given",
    }
    if terms.samples is not None:
        facts["sample ids"] = (
            f"{terms.samples.count}, digest {terms.samples.digest[:16]}, listed in {terms.samples.uri}"
        )
    return [
        *(f"  {key:11} {value}" for key, value in facts.items()),
        *(f"  {entry.time}  {move_text(entry):40} {entry.by}" for entry in request.history),
    ]


def move_text(entry: Entry) -> str:
    """A move in a few words: answered by version 3 (run digits-3)."""
    details = entry.details
    if entry.move == "audited":
        outcome = "passed" if details["passed"] else "failed"
        return f"audited on version {details['version']}: {outcome}"
    version = f" by version {details['version']}" if "version" in details else ""
    run = f" (run {details['run_id']})" if "run_id" in details else ""
    reason = f": {details['reason']}" if "reason" in details else ""
    return f"{entry.move}{version}{run}{reason}"
