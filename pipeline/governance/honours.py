"""Which deletion requests a version honours, and which of those that it has to it does not."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.governance.purge_reach import whole_classes
from pipeline.reports.pages import RESULT
from pipeline.requests import served
from pipeline.requests.ledger import Ledger, Request
from pipeline.tracking.honoured_requests import honoured_by, honoured_of
from pipeline.tracking.registry import RUN_ID_TAG

if TYPE_CHECKING:
    from pipeline.tracking.registry import ModelVersion

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Honoured:
    """What a version's weights were measured to have forgotten: requests by id with the classes that each
    names whole (none: named samples), and all those classes."""

    requests: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    classes: frozenset[int] = frozenset()

    def honours(self, request_id: str, classes: Sequence[int], *, samples: bool) -> bool:
        """Whether it honours a request: by its id or, where that names whole classes alone, by having
        forgotten them all under another."""
        own = self.requests.get(request_id)
        # another request may have been given the same id: it is not the one that was answered
        by_id = own is not None and (not own or set(own).issuperset(classes))
        return by_id or (bool(classes) and not samples and self.classes.issuperset(classes))


def of_result(result: Mapping[str, Any]) -> Honoured:
    """Of the version that a result.json is about. Its classes are those of its closed requests and, where the
    gate passed, all that it was made not to sample."""
    own, noted = result.get("request") or {}, honoured_of(result)
    whole = tuple(whole_classes(own)) if own else ()
    by_id = {str(one["id"]): tuple(one["classes"]) for one in result.get("requests") or []}
    requests = {
        name: by_id.get(name, whole if name == str(own.get("id")) else ()) for name in noted["request_ids"]
    }
    passed = (result.get("gate") or {}).get("passed") is True
    classes = set(noted["forgotten_classes"] if passed else ()).union(*requests.values())
    return Honoured(requests=requests, classes=frozenset(classes))


def of_tags(tags: Mapping[str, str]) -> Honoured:
    """Of a version whose result.json is not there any more."""
    noted = honoured_by(tags)
    classes = tuple(json.loads(tags.get("request_classes", "[]")))
    requests = {name: classes if name == tags.get("request_id") else () for name in noted["request_ids"]}
    return Honoured(requests=requests, classes=frozenset(noted["forgotten_classes"]))


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


def reopen(storage_root: str, version: "ModelVersion", lost: Sequence[str]) -> None:
    """Open the closed requests again that `version`, which serves now, does not honour, where there are
    any `lost` (see `missing`)."""
    if not lost:
        return
    honoured = of_version(storage_root, version)

    def honours(request: Request) -> bool:
        terms = request.terms
        return honoured.honours(request.id, terms.classes, samples=terms.samples is not None)

    for name in served.reopen(storage_root, version.name, int(version.version), honours):
        log.warning("request %s is open again: version %s does not honour it", name, version.version)


def answered_of(ledger: Ledger, model_name: str) -> list[Request]:
    return [
        request
        for request in ledger.requests.values()
        if request.is_answered and request.terms.model_name == model_name
    ]


def _line(request_id: str, classes: Sequence[int], why: str) -> str:
    scope = f" (class {', '.join(map(str, classes))})" if classes else ""
    return f"request {request_id}{scope}, {why}"
