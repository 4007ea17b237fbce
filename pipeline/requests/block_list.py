"""What may not be given any more from the moment a request is accepted: for every model its requests, so that
a version that does not honour one refuses its classes."""

from typing import TYPE_CHECKING, Any

from models.block_list import BLOCKED as BLOCKED
from models.block_list import KEY_VARIABLE, blocked_classes, sealed
from pipeline import storage
from pipeline.data import keyed_ids
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.requests.ledger import Ledger
    from pipeline.tracking.registry import ModelVersion

BLOCKING = ("accepted", "reopened", "answered", "closed")  # states of a request whose classes are blocked


def document(ledger: "Ledger") -> dict[str, Any]:
    """`blocked.json` of `ledger`."""
    models: dict[str, list[dict[str, Any]]] = {}
    for request in ledger.requests.values():
        if request.state in BLOCKING and request.terms.classes:
            reopening = request.last("reopened")
            entry = {
                "id": request.id,
                "classes": request.terms.classes,
                "reopened": reopening.time if reopening else "",
            }
            models.setdefault(request.terms.model_name, []).append(entry)
    key = keyed_ids.operators_key()
    return sealed({**ledger.head, "models": models}, key.secret if key else None)


def require_true(folder_uri: str, ledger: "Ledger") -> None:
    """Raise `InputError` for a block list in the ledger's folder that says other than the ledger's entries:
    whoever edits it can make its seal again. One that is gone is written again by the next move."""
    from pipeline.requests.ledger import fold

    uri = storage.join(folder_uri, BLOCKED)
    if not storage.exists(uri):
        return
    try:
        listed = storage.read_json(uri)
        count = int(listed["entries"])
    except (ValueError, KeyError, TypeError):
        listed, count = None, 0
    if count > len(ledger.entries):
        return  # of a move that was made since the entries were read
    if listed != document(fold(ledger.entries[:count])):
        key = f" sealed with the key in {KEY_VARIABLE}" if keyed_ids.operators_key() else ""
        raise InputError(
            f"{uri}: not the block list of the ledger's entries{key}, so classes may be sampled that"
            " are blocked, or the other way round: it was edited or damaged; remove it, and submit any"
            " request once more, which changes nothing else, to have it written again"
        )


def of_version(ledger: "Ledger", version: "ModelVersion") -> dict[int, str]:
    """Class -> the request it is blocked by, for a registered version."""
    from pipeline.tracking.honoured_requests import honoured_by, registered_at

    requests = document(ledger)["models"].get(version.name, [])
    return blocked_classes(requests, **honoured_by(version.tags), registered=registered_at(version))
