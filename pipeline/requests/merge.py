"""What one unlearning run has to answer: everything open of a model together with everything ever answered.

Pure functions of the ledger: no file is read here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import InputError
from pipeline.requests.ledger import Ledger, Request

Role = Literal["forgotten_now", "forgotten_earlier", "retained"]


@dataclass(frozen=True, kw_only=True)
class Union:
    """One request for them all.

    `exchange` holds, for each forgotten class that has any, the classes that stay in the end. `redirected`
    says of a class whose exchange class was forgotten by a later request what it was to give at first.
    `sample_ids` are those of classes that are not forgotten whole.
    """

    open: tuple[Request, ...]  # earliest due date first
    answered: tuple[Request, ...]  # in the order they were answered
    classes: tuple[int, ...]
    exchange: dict[int, tuple[int, ...]]
    redirected: dict[int, tuple[int, ...]]
    sample_ids: tuple[str, ...]
    sample_classes: tuple[int, ...]  # of sample_ids

    @property
    def request_ids(self) -> tuple[str, ...]:
        return tuple(request.id for request in (*self.answered, *self.open))


def of_model(ledger: Ledger, model_name: str, lake: str | None = None) -> list[Request]:
    """The open and answered requests of a model, or of a model and a lake, in the order of their receipt."""
    return [
        request
        for request in ledger.requests.values()
        if request.terms.model_name == model_name
        and lake in (None, request.terms.lake)
        and (request.is_open or request.is_answered)
    ]


def open_requests(requests: Iterable[Request]) -> list[Request]:
    """Those that wait for an answer, earliest due date first and then in the order of their receipt."""
    return sorted(
        (request for request in requests if request.is_open),
        key=lambda request: (request.terms.due, request.history[0].number),
    )


def answered_requests(requests: Iterable[Request]) -> list[Request]:
    """Those that the model has to go on honouring, in the order they were answered."""
    answers = [
        (entry.number, request)
        for request in requests
        if request.is_answered and (entry := request.last("answered")) is not None
    ]
    return [request for _, request in sorted(answers, key=lambda answer: answer[0])]


def union(requests: Sequence[Request], ids: Mapping[str, Mapping[str, int]]) -> Union:
    """The one request that answers `requests` (open and answered ones of one model and lake).

    `ids` holds, by request, the class of each named sample (`samples.of_request`). Raises `InputError` for
    requests that contradict each other, or are about several lakes.
    """
    if len(lakes := sorted({request.terms.lake for request in requests})) > 1:
        raise InputError(f"requests: got those of lakes {', '.join(lakes)}, expected one lake for one run")
    waiting, answered = open_requests(requests), answered_requests(requests)
    classes = {label for request in requests for label in request.terms.classes}
    first_exchange = _exchange_by_class([*answered, *waiting])
    exchange = {label: _final_exchange(label, first_exchange, classes) for label in sorted(first_exchange)}
    samples = {
        name: label
        for request in requests
        for name, label in ids.get(request.id, {}).items()
        if label not in classes
    }
    return Union(
        open=tuple(waiting),
        answered=tuple(answered),
        classes=tuple(sorted(classes)),
        exchange={label: others for label, others in exchange.items() if others},
        redirected={
            label: first_exchange[label] for label in exchange if exchange[label] != first_exchange[label]
        },
        sample_ids=tuple(sorted(samples)),
        sample_classes=tuple(sorted(set(samples.values()))),
    )


def roles(requests: Iterable[Request], labels: Iterable[int]) -> dict[int, Role]:
    """What each class of the lake is in a run that answers `requests`.

    A class that an answered request names was forgotten earlier, also when another asks for it again. Classes
    of named samples are retained: they go on being given, without those samples.
    """
    every = list(requests)
    earlier = {label for request in every if request.is_answered for label in request.terms.classes}
    now = {label for request in every if request.is_open for label in request.terms.classes}
    return {
        label: "forgotten_earlier" if label in earlier else "forgotten_now" if label in now else "retained"
        for label in labels
    }


def _exchange_by_class(requests: Iterable[Request]) -> dict[int, tuple[int, ...]]:
    """The exchange classes of each class, as the requests have them. Raises `InputError` where two differ."""
    first: dict[int, tuple[tuple[int, ...], str]] = {}
    for request in requests:
        for label, classes in request.terms.exchange.items():
            earlier, request_id = first.setdefault(label, (tuple(classes), request.id))
            if earlier != tuple(classes):
                raise InputError(
                    f"requests {request_id} and {request.id}: class {label} is to give {list(earlier)} and"
                    f" {classes}; withdraw one of the two"
                )
    return {label: classes for label, (classes, _) in first.items()}


def _final_exchange(
    label: int, exchange: Mapping[int, tuple[int, ...]], forgotten: set[int]
) -> tuple[int, ...]:
    """The classes at the ends of the chains that start at `label`: an exchange class that was forgotten
    itself gives way to its own, and falls out where it has none."""
    ends, visited, queue = set(), {label}, list(exchange[label])
    while queue:
        other = queue.pop()
        if other not in forgotten:
            ends.add(other)
        elif other not in visited:
            queue += exchange.get(other, ())
        visited.add(other)
    return tuple(sorted(ends))
