"""What may not be given any more from the moment a request is accepted: for every model its requests, so that
a version that does not honour one refuses its classes."""

from typing import TYPE_CHECKING, Any

from models.block_list import BLOCKED as BLOCKED
from models.block_list import blocked_classes, sealed

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
    return sealed({**ledger.head, "models": models})


def of_version(ledger: "Ledger", version: "ModelVersion") -> dict[int, str]:
    """Class -> the request it is blocked by, for a registered version."""
    from pipeline.tracking.honoured_requests import honoured_by, registered_at

    requests = document(ledger)["models"].get(version.name, [])
    return blocked_classes(requests, **honoured_by(version.tags), registered=registered_at(version))
