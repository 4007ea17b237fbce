"""Closed requests that the version which serves does not honour, after a rollback or a promotion with a
reason: they are open again, so that somebody hears of them and the next run answers them."""

from collections.abc import Callable

from pipeline.data import tombstones
from pipeline.requests import ledger, page
from pipeline.requests.ledger import Ledger, Move, Request


def reopenings(
    known: Ledger, storage_root: str, model_name: str, number: int, honours: Callable[[Request], bool]
) -> list[Move]:
    """The moves for version `number` of a model, which serves; `honours` says whether it honours one.

    Purged ones stay closed: no run could answer them again, and none starts before a version serves that
    honours them.
    """
    reason = f"version {number}, which serves, does not honour it"
    return [
        Move(name="reopened", request=request.id, details={"reason": reason})
        for request in known.requests.values()
        if request.state == "closed"
        and request.terms.model_name == model_name
        and not honours(request)
        and tombstones.find(storage_root, request.id) is None
    ]


def reopen(storage_root: str, model_name: str, number: int, honours: Callable[[Request], bool]) -> list[str]:
    """Write them into the ledger, where there is any; the requests' ids."""
    ids: list[str] = []

    def decide(known: Ledger) -> list[Move]:
        moves = reopenings(known, storage_root, model_name, number, honours)
        ids[:] = [move.request for move in moves]
        return moves

    if decide(ledger.read(storage_root)):
        ledger.append(storage_root, decide)
        page.write(storage_root)
    return ids
