"""requests.html: what waits, what was answered and by which version, on one page that needs nothing else."""

import contextlib
import datetime
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.reports.html import environment
from pipeline.reports.pages import RESULT
from pipeline.reports.text import null_label_sentence
from pipeline.requests import ledger
from pipeline.requests.ledger import ANSWERED, OPEN, Ledger, Request
from pipeline.requests.overview import in_order, move_text, scope_text, state_text, status

TEMPLATES = Path(__file__).with_name("templates")
PAGE = "requests.html"
PILLS = {
    "overdue": "bad",
    "refused": "bad",
    "reopened": "open",
    "received": "open",
    "accepted": "open",
    "answered": "good",
    "closed": "good",
    "withdrawn": "plain",
}


def write(storage_root: str) -> str:
    """Make the page of the ledger as it is now; its URI. Of two writers at once the last one leaves the
    newer ledger."""
    uri = storage.join(ledger.folder(storage_root), PAGE)
    snapshot = ledger.read(storage_root)
    while True:
        storage.write_text(uri, render(snapshot, ledger.today(), null_label_of(storage_root, snapshot)))
        newer = ledger.read(storage_root)
        if newer.head == snapshot.head:
            return uri
        snapshot = newer


def null_label_of(storage_root: str, snapshot: Ledger) -> dict[str, str]:
    """By run that answered a request: what was measured under the null label, where its result is there."""
    sentences = {}
    for request in snapshot.requests.values():
        if (answer := request.last("answered")) is not None:
            run_id = str(answer.details["run_id"])
            with contextlib.suppress(FileNotFoundError, ValueError):  # a page is no place to complain
                result = _result(storage.join(storage_root, "runs", run_id, RESULT))
                sentences[run_id] = " ".join(null_label_sentence(result))
    return sentences


@lru_cache(maxsize=512)
def _result(uri: str) -> dict[str, Any]:
    """It never changes once it is there."""
    return dict(storage.read_json(uri))


def render(snapshot: Ledger, today: datetime.date, null_label: Mapping[str, str] | None = None) -> str:
    """The page as of `today`; every text from outside is escaped. `null_label`: by run, what was measured
    where no class is asked for."""
    requests = in_order(snapshot)
    counts = status(snapshot, today)
    waiting = [request for request in requests if request.state in OPEN]
    answered = [request for request in requests if request.state in ANSWERED]
    return (
        environment(TEMPLATES)
        .get_template(PAGE)
        .render(
            lead=_lead(len(requests), len(waiting)),
            state=_state(waiting, counts),
            tiles=[
                ("Waiting", len(waiting), _next(counts), "waiting"),
                ("Overdue", len(counts["overdue"]), ", ".join(counts["overdue"][:3]) or "none", "overdue"),
                (
                    "Answered",
                    len(answered),
                    f"{sum(_audit(r) is not None for r in answered)} measured again since",
                    "",
                ),
                ("Refused", len(counts["refused"]), ", ".join(counts["refused"][:3]) or "none", ""),
            ],
            sections=[
                (
                    "waiting",
                    "Waiting",
                    "Earliest due date first.",
                    [_row(r, today, null_label or {}) for r in waiting],
                ),
                (
                    "answered",
                    "Answered",
                    "The last one first.",
                    [_row(r, today, null_label or {}) for r in answered],
                ),
                (
                    "others",
                    "Refused and withdrawn",
                    "",
                    [_row(r, today, null_label or {}) for r in requests if r.state not in (*OPEN, *ANSWERED)],
                ),
            ],
            head=snapshot.head,
            today=today.isoformat(),
        )
    )


def _row(request: Request, today: datetime.date, null_label: Mapping[str, str]) -> dict[str, Any]:
    terms, answer, audit = request.terms, request.last("answered"), _audit(request)
    label = state_text(request, today)
    measured = null_label.get(str(answer.details["run_id"])) if answer else None
    late = answer is not None and request.is_answered and answer.time[:10] > terms.due.isoformat()
    return {
        "id": request.id,
        "state": label,
        "pill": PILLS["overdue" if request.is_overdue(today) else request.state],
        "open": request.is_open,
        "reason": request.reason,
        "asked": scope_text(terms),
        "due": terms.due.isoformat(),
        "answered": f"{answer.time[:10]}{', late' if late else ''}"
        if answer and request.is_answered
        else None,
        "version": request.version,
        # relative, so that the page still leads there when the storage root was moved
        "report": f"../runs/{answer.details['run_id']}/report.html" if answer else None,
        "audit": audit,
        "facts": [
            ("Model", terms.model_name),
            ("Lake", terms.lake),
            ("Received", terms.received.isoformat()),
            ("Legal basis", terms.legal_basis or "not given"),
            ("Approver", terms.approver or "not given"),
            *([("Digest of the ids", terms.samples.digest)] if terms.samples else []),
            *([("Null label", measured)] if measured else []),
        ],
        "history": [(entry.time, move_text(entry), entry.by) for entry in request.history],
    }


def _audit(request: Request) -> dict[str, str] | None:
    """When the request was last measured again, on which version, and the outcome."""
    entry = request.last("audited")
    if entry is None:
        return None
    outcome = ("good", "passed") if entry.details["passed"] else ("bad", "failed")
    return {
        "date": entry.time[:10],
        "version": str(entry.details["version"]),
        "pill": outcome[0],
        "outcome": outcome[1],
    }


def _lead(total: int, waiting: int) -> str:
    if not total:
        return "No deletion request has come in yet."
    came = "1 deletion request came in" if total == 1 else f"{total} deletion requests came in"
    left = "none waits" if not waiting else "1 still waits" if waiting == 1 else f"{waiting} still wait"
    return f"{came}; {left}."


def _state(waiting: Sequence[Request], counts: dict[str, Any]) -> tuple[str, str]:
    if counts["overdue"] or counts["refused"]:
        return "bad", "needs attention"
    return ("open", "in time") if waiting else ("good", "nothing waits")


def _next(counts: dict[str, Any]) -> str:
    following = counts["next_due"]
    return f"next due {following['due']}" if following else "nothing else due"
