"""Which deletion requests a version honours, and which of those that it has to it does not."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.governance.purge_reach import whole_classes
from pipeline.reports.pages import RESULT
from pipeline.requests.ledger import Ledger, Request
from pipeline.tracking.registry import RUN_ID_TAG, answered_ids, request_ids

if TYPE_CHECKING:
    from pipeline.tracking.registry import ModelVersion


@dataclass(frozen=True, kw_only=True)
class Honoured:
    """What a version's weights were measured to have forgotten: requests by id with the classes that each
    names whole (none: named samples), and all those classes."""

    requests: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    classes: frozenset[int] = frozenset()

    def honours(self, request_id: str, classes: Sequence[int], *, samples: bool) -> bool:
        """Whether it honours a request: by its id or, where that names whole classes alone, by having
        forgotten them all under another."""
        return request_id in self.requests or (
            bool(classes) and not samples and self.classes.issuperset(classes)
        )


def of_result(result: Mapping[str, Any]) -> Honoured:
    """Of the version that a result.json is about."""
    own, requests = result.get("request") or {}, result.get("requests")
    whole = whole_classes(own) if own else []
    if requests is None:
        named = {name: tuple(whole) for name in answered_ids(result)}
    else:
        named = {str(request["id"]): tuple(request["classes"]) for request in requests if request["closed"]}
    classes = {label for labels in named.values() for label in labels}
    return Honoured(requests=named, classes=frozenset(classes))


def of_tags(tags: Mapping[str, str]) -> Honoured:
    """Of a version whose result.json is not there any more."""
    classes = json.loads(tags.get("forgotten_classes") or tags.get("request_classes") or "[]")
    ids = request_ids(tags)
    return Honoured(requests=dict.fromkeys(ids, tuple(classes)), classes=frozenset(classes))


def of_version(storage_root: str, version: "ModelVersion") -> Honoured:
    """By the result.json of its run, else by its tags."""
    uri = storage.join(storage_root, "runs", version.tags.get(RUN_ID_TAG, ""), RESULT)
    return of_result(storage.read_json(uri)) if storage.exists(uri) else of_tags(version.tags)


def missing(version: Honoured, predecessor: Honoured | None, answered: Iterable[Request]) -> list[str]:
    """What `version` does not honour and has to: the requests of the champion before it, and every answered
    request of the ledger to its model. A line each."""
    lines = {}
    for request in answered:
        terms = request.terms
        if not version.honours(request.id, terms.classes, samples=terms.samples is not None):
            lines[request.id] = _line(request.id, terms.classes, "answered in the ledger")
    for request_id, classes in (predecessor.requests if predecessor else {}).items():
        if request_id not in lines and not version.honours(request_id, classes, samples=not classes):
            lines[request_id] = _line(request_id, classes, "honoured by the champion")
    return list(lines.values())


def answered_of(ledger: Ledger, model_name: str) -> list[Request]:
    return [
        request
        for request in ledger.requests.values()
        if request.is_answered and request.terms.model_name == model_name
    ]


def _line(request_id: str, classes: Sequence[int], why: str) -> str:
    scope = f" (class {', '.join(map(str, classes))})" if classes else ""
    return f"request {request_id}{scope}, {why}"
