"""Taking a request in: its scope checked against the lake and against everything the ledger holds already."""

import datetime
from collections.abc import Sequence

from pipeline import storage
from pipeline.config.ledger import LedgerConfig
from pipeline.data import tombstones
from pipeline.data.lake import lake_uri, read_lake
from pipeline.errors import InputError
from pipeline.redaction import redact
from pipeline.requests import ledger, merge, samples
from pipeline.requests.ledger import Ledger, Move, Request, Terms
from pipeline.runs.request_checks import default_id, exchange_hint, require_scope


def submit(config: LedgerConfig, *, dry_run: bool = False) -> tuple[Request, bool]:
    """The request as the ledger has it afterwards, and whether it is new.

    A second submission of the same scope under the same id changes nothing; an interrupted one is completed.
    Raises `InputError` for a scope that the lake or the ledger does not allow.
    """
    terms = _terms(config)
    request_id = config.request.id or default_id(terms.lake, terms.classes, terms.scope)
    snapshot = ledger.read(config.storage)
    is_new = request_id not in snapshot.requests
    labels: set[int] = set()
    if is_new:
        terms, labels = _against_lake(config, terms)

    def decide(snapshot: Ledger) -> Sequence[Move]:
        earlier = snapshot.requests.get(request_id)
        if earlier is None:
            require_consistent(terms, snapshot, labels, without_exchange=config.request.without_exchange)
            return [Move(name="received", request=request_id, details=terms.model_dump(mode="json"))]
        _require_same_scope(earlier, terms)
        if earlier.state == "withdrawn":
            raise InputError(
                f"request.id: {request_id!r} was withdrawn; expected another id for what is asked again"
            )
        return [Move(name="accepted", request=request_id)] if earlier.state == "received" else []

    ids = samples.read_list(terms.samples.uri) if terms.samples else []
    if dry_run:
        decide(snapshot)
        draft = Request(id=request_id, terms=terms, state="received", history=())
        return snapshot.requests.get(request_id, draft), is_new
    decide(snapshot)
    if ids and storage.digest_of(ids) == (terms.samples and terms.samples.digest):
        samples.keep(config.storage, request_id, ids)  # before the ledger counts on them
    return ledger.append(config.storage, decide).requests[request_id], is_new


def withdraw(config: LedgerConfig, *, dry_run: bool = False) -> Request:
    """The request, withdrawn. Raises `InputError` for one that was answered: the model cannot un-forget."""
    if config.reason is None:
        raise InputError("reason: got none, expected why the request is withdrawn: --set 'reason=<text>'")

    def decide(snapshot: Ledger) -> Sequence[Move]:
        request = snapshot.find(config.request.id)
        if request.is_answered:
            raise InputError(
                f"request {request.id}: version {request.version} of {request.terms.model_name} answered it"
                " already, and a model cannot un-forget; train it on the data again if it is to come back"
            )
        if request.state == "withdrawn":
            return []
        return [Move(name="withdrawn", request=request.id, details={"reason": config.reason})]

    if dry_run:
        snapshot = ledger.read(config.storage)
        decide(snapshot)
        return snapshot.find(config.request.id)
    return ledger.append(config.storage, decide).find(config.request.id)


def reopen(config: LedgerConfig, *, dry_run: bool = False) -> Request:
    """The request, open again: somebody looked at the version that answered it and will not have it serve.
    Raises `InputError` for one that no version has answered."""
    if config.reason is None:
        raise InputError("reason: got none, expected why the answer is not accepted: --set 'reason=<text>'")

    def decide(snapshot: Ledger) -> Sequence[Move]:
        request = snapshot.find(config.request.id)
        if request.is_open:
            return []
        if not request.is_answered and request.state != "refused":
            raise InputError(f"request {request.id}: is {request.state}, expected an answered one")
        return [Move(name="reopened", request=request.id, details={"reason": config.reason})]

    if dry_run:
        snapshot = ledger.read(config.storage)
        decide(snapshot)
        return snapshot.find(config.request.id)
    return ledger.append(config.storage, decide).find(config.request.id)


def require_consistent(terms: Terms, snapshot: Ledger, labels: set[int], *, without_exchange: bool) -> None:
    """Raise `InputError` for terms that go against a request that is open or answered; `labels` are the
    lake's classes."""
    others = merge.of_model(snapshot, terms.model_name, terms.lake)
    forgotten_by = {label: request.id for request in others for label in request.terms.classes}
    exchange_by = {label: request for request in others for label in request.terms.exchange}
    for label, exchange in terms.exchange.items():
        for other in exchange:
            if other in forgotten_by:
                raise InputError(
                    f"request.exchange: class {label} would give class {other}, which request"
                    f" {forgotten_by[other]} has forgotten or will; choose a class that stays"
                )
        earlier = exchange_by.get(label)
        if earlier is not None and earlier.terms.exchange[label] != exchange:
            raise InputError(
                f"request.exchange: class {label} would give {exchange}, but by request {earlier.id} it gives"
                f" {earlier.terms.exchange[label]}; expected the same, or no exchange for it"
            )
    bare = [label for label in terms.classes if label not in terms.exchange and label not in exchange_by]
    if bare and not without_exchange:
        raise InputError(
            f"request.exchange: class {bare[0]} has none, so nothing says what its label is to give instead;"
            f" give one (--set 'request.exchange={exchange_hint(terms.exchange, bare)}') or insist with --set"
            " request.without_exchange=true"
        )
    if labels <= {*forgotten_by, *terms.classes}:
        raise InputError(
            f"request.classes: with {terms.classes} every class of lake {terms.lake!r} would be forgotten;"
            " expected at least one to stay"
        )


def _terms(config: LedgerConfig) -> Terms:
    """What the configuration asks for, before lake and ledger are looked at."""
    scope = config.request
    exchange = {
        label: [to] if isinstance(to, int) else sorted(set(to)) for label, to in scope.exchange.items()
    }
    require_scope(scope.classes, scope.sample_ids, exchange)
    today = ledger.today()
    received = config.received or today
    if received > today:
        raise InputError(f"received: got {received}, which is still to come; expected {today} or earlier")
    if redact(config.lake) != config.lake:
        raise InputError("lake: got a URI with a password in it, expected credentials from the environment")
    uri = storage.absolute(scope.sample_ids) if scope.sample_ids else None
    return Terms(
        model_name=config.tracking.model_name,
        lake=storage.absolute(config.lake) if "/" in config.lake else config.lake,
        classes=sorted(scope.classes),
        exchange=dict(sorted(exchange.items())),
        samples=samples.named(uri, samples.read_list(uri)) if uri else None,
        received=received,
        due=config.due or received + datetime.timedelta(days=config.due_days),
        legal_basis=config.legal_basis,
        approver=config.approver,
    )


def _against_lake(config: LedgerConfig, terms: Terms) -> tuple[Terms, set[int]]:
    """`terms` with the classes of its named samples, and the lake's classes. Raises `InputError` for what the
    lake does not hold."""
    lake = read_lake(lake_uri(config.storage, terms.lake))
    labels = {item.label for item in lake.manifest.classes}
    for key, wanted in (
        ("classes", terms.classes),
        ("exchange", [other for classes in terms.exchange.values() for other in classes]),
    ):
        if unknown := [label for label in wanted if label not in labels]:
            raise InputError(
                f"request.{key}: class {unknown[0]} is not in lake {terms.lake!r}, expected one of"
                f" {min(labels)} to {max(labels)}"
            )
    if terms.samples is None:
        return terms, labels
    ids = samples.read_list(terms.samples.uri)
    if purged := tombstones.buried(config.storage).among(ids):
        raise InputError(
            f"request.sample_ids: {len(purged)} of {len(ids)} samples were purged already, the first is"
            f" {min(purged)!r}; expected ids of rows that are there: drop them from the list"
        )
    classes = samples.classes_of(lake, ids)
    named_samples = terms.samples.model_copy(update={"classes": samples.count_by_class(classes)})
    return terms.model_copy(update={"samples": named_samples}), labels


def _require_same_scope(request: Request, terms: Terms) -> None:
    different = [key for key, value in terms.scope.items() if request.terms.scope[key] != value]
    if different:
        key = different[0]
        raise InputError(
            f"request.id: {request.id!r} is in the ledger with another scope ({key}"
            f" {request.terms.scope[key]}, got {terms.scope[key]}); expected the same scope, or another id"
        )
