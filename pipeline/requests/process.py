"""Answering the requests of a model: one run for all, each measured by itself, a version that honours them.

Killed at any moment it goes on: the ledger says what is answered, a run is found by its id and goes on from
its checkpoint, and what is decided is decided on what is there. Everything is written under one lease.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline import storage
from pipeline.config.commands import command, config_for
from pipeline.config.process import ProcessConfig
from pipeline.data.lake import Lake, lake_uri, read_lake
from pipeline.errors import InputError
from pipeline.lease import Lease, held
from pipeline.requests import ledger, merge, page
from pipeline.requests import plan as planning
from pipeline.requests.ledger import Ledger, Move, Request
from pipeline.requests.plan import LIST, Plan, Rows, Version
from pipeline.requests.served import reopenings

LEASE, PLAN = "lease", "plan.json"
NOTHING_NEW = (
    "everything it names was forgotten before and the rows are not read any more, so there is nothing to"
    " train on; the next run that forgets something else measures it too and answers it"
)
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to. `refusals`: why its version may not serve, empty where the gate passed it.
    `failures`: by request, why it does not hold on these weights."""

    version: int
    refusals: tuple[str, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)


class Model(Protocol):
    """The model that the requests are about: its versions, and the run that makes another."""

    def champion(self) -> Version | None:
        """The version that serves; None where there is none."""

    def check(self, plan: Plan) -> None:
        """Raise `InputError` for a plan that cannot be carried out; nothing is written."""

    def answer(self, plan: Plan) -> Outcome:
        """Carry the plan out, or what is left of it: a run that is finished gives what it came to."""

    def promote(self, version: int) -> None:
        """Make `version` the one that serves. Raises `InputError` where it may not."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What there is when a processor ends. `left`: requests without a version that serves, each with the
    reason. `awaiting`: answered ones with the version that somebody has to approve. `gate_failed`: whether
    a run failed its gate."""

    left: Mapping[str, str]
    overdue: tuple[str, ...]
    refused: tuple[str, ...]
    awaiting: Mapping[str, int]
    gate_failed: bool = False
    elsewhere: tuple[str, ...] = ()  # open requests to other models, which this processor does not answer

    @property
    def alarms(self) -> bool:
        return bool(self.left or self.overdue or self.refused)


def process(config: ProcessConfig, model: Model, say: Say = print) -> Summary:
    """Answer what is open. Raises `LeaseHeldError` while another processor works, and `InputError` for what
    somebody has to mend first."""
    lake = read_lake(lake_uri(config.storage, config.lake))
    of_model(config)
    with held(storage.join(ledger.folder(config.storage), LEASE), lasts_s=config.lease_s) as lease:
        return Processor(config, model, lake, lease, say).work()


class Processor:
    """One pass over the ledger, by whoever holds the lease."""

    def __init__(self, config: ProcessConfig, model: Model, lake: Lake, lease: Lease, say: Say) -> None:
        self.config, self.model, self.lake, self.lease, self.say = config, model, lake, lease, say
        self.plan_uri = storage.join(ledger.folder(config.storage), PLAN)
        self.unpromoted = ""  # why a version that should serve does not
        self.gate_failed = False

    def work(self) -> Summary:
        """Settle what was answered, then run after run until nothing is open that could be answered."""
        champion, name = self.model.champion(), self.config.tracking.model_name
        require_known(self.config, ledger.read_whole(self.config.storage), champion)
        self.write(failed_audits)
        if champion is not None:
            number, ids, root = champion.number, champion.request_ids, self.config.storage
            self.write(lambda known: reopenings(known, root, name, number, lambda one: one.id in ids))
        self.settle()
        left: dict[str, str] = {}
        while (plan := self.next_plan(left)) is not None:
            for line in plan.lines:
                self.say(line)
            self.begin(plan)
            outcome = self.model.answer(plan)
            self.gate_failed |= bool(outcome.refusals)
            left |= self.record(plan, outcome)
            self.settle()
        storage.remove(self.plan_uri)
        page.write(self.config.storage)
        return self.summary(left)

    def next_plan(self, left: dict[str, str]) -> Plan | None:
        """The run for what is open and not in `left`, to which requests are added that no run could answer;
        a plan that was begun and not finished comes first."""
        requests = of_model(self.config)
        rows = planning.rows_of(requests, self.lake, self.config.storage)
        hopeless = planning.hopeless(self.config, requests, rows)
        if fresh := {name: reason for name, reason in hopeless.items() if name not in left}:
            self.postpone(fresh)
            left |= fresh
        able = [request for request in requests if not (request.is_open and request.id in left)]
        if not any(request.is_open for request in able):
            return None
        champion = self.model.champion()
        plan = self.unfinished(able, rows, champion) or planning.make(self.config, able, rows, champion)
        if not plan.is_empty:
            return plan
        left |= (waiting := {request.id: NOTHING_NEW for request in plan.union.open})
        self.postpone(waiting)
        return None

    def unfinished(self, able: Sequence[Request], rows: Rows, champion: Version | None) -> Plan | None:
        """The plan that a processor was at when it ended, while it would still be made: requests that came
        since are another run's."""
        if not storage.exists(self.plan_uri):
            return None
        begun = storage.read_json(self.plan_uri)
        of_then = [r for r in able if r.id in begun["request_ids"]]
        if not any(request.is_open for request in of_then):
            return None
        plan = planning.make(self.config, of_then, rows, champion)
        return plan if plan.run_id == begun["run_id"] else None

    def begin(self, plan: Plan) -> None:
        """Leave what a later processor needs to go on with `plan`."""
        self.lease.require()
        if plan.list_uri is not None:
            storage.write_text(plan.list_uri, "\n".join(plan.union.sample_ids) + "\n")
        try:
            self.model.check(plan)
        except InputError:
            if plan.list_uri is not None and storage.listing(plan.list_uri.rsplit("/", 1)[0]) == [LIST]:
                storage.remove(plan.list_uri)
            raise
        storage.write_json(self.plan_uri, {"run_id": plan.run_id, "request_ids": plan.request_ids})

    def record(self, plan: Plan, outcome: Outcome) -> dict[str, str]:
        """Write what the run came to into the ledger; the requests that it leaves open, each with the
        reason."""
        failures = dict(outcome.failures)
        open_ids = [request.id for request in plan.union.open]
        lost = [request.id for request in plan.union.answered if request.id in failures]
        if outcome.refusals or lost:
            why = "; ".join([*outcome.refusals, *(f"request {name}: {failures[name]}" for name in lost)])
            culprits = [name for name in open_ids if name in failures]
            # where only some of several failed by themselves, the others are tried without them
            blamed = culprits if culprits and len(culprits) < len(open_ids) and not lost else open_ids
            reasons = {name: failures.get(name, f"version {outcome.version}: {why}") for name in blamed}
        else:
            reasons = {name: reason for name, reason in failures.items() if name in open_ids}
            self.write(lambda known: _answers(known, plan, outcome))
        self.postpone(reasons, run_id=plan.run_id)
        return reasons

    def postpone(self, reasons: Mapping[str, str], **facts: str) -> None:
        """Note why requests stay open, once for the same reason."""
        for name, reason in reasons.items():
            self.say(f"request {name} stays open: {reason}")

        def decide(known: Ledger) -> list[Move]:
            wanted = [
                Move(name="postponed", request=name, details={"reason": reason, **facts})
                for name, reason in reasons.items()
            ]
            return [move for move in wanted if _is_news(known.requests[move.request], move)]

        self.write(decide)

    def settle(self) -> None:
        """Promote, where the policy says so, what answered requests wait for, and close what the serving
        version honours."""
        waiting = [request for request in of_model(self.config) if request.state == "answered"]
        if not waiting:
            return
        champion = self.model.champion()
        unserved = [r for r in waiting if champion is None or r.id not in champion.request_ids]
        if unserved and self.config.promote == "automatic":
            version = max(request.version or 0 for request in unserved)
            self.lease.require()
            try:
                self.model.promote(version)
                self.say(f"version {version} serves now")
            except InputError as error:
                self.unpromoted = str(error)
            champion = self.model.champion()
        ids = [request.id for request in waiting]
        self.write(lambda known: _closures(known, ids, champion))

    def write(self, decide: Callable[[Ledger], Sequence[Move]]) -> None:
        """Moves into the ledger, each only while this process holds the lease."""

        def under_lease(known: Ledger) -> Sequence[Move]:
            self.lease.require()
            return decide(known)

        if decide(ledger.read(self.config.storage)):
            ledger.append(self.config.storage, under_lease)
            page.write(self.config.storage)

    def summary(self, left: Mapping[str, str]) -> Summary:
        name, today = self.config.tracking.model_name, ledger.today()
        every = list(ledger.read(self.config.storage).requests.values())
        mine = [request for request in every if request.terms.model_name == name]
        awaiting = {request.id: request.version or 0 for request in mine if request.state == "answered"}
        if self.config.promote == "automatic":
            left = {**left, **dict.fromkeys(awaiting, self.unpromoted)}
        return Summary(
            left=dict(left),
            overdue=tuple(request.id for request in mine if request.is_overdue(today)),
            refused=tuple(request.id for request in mine if request.state == "refused"),
            awaiting=awaiting,
            gate_failed=self.gate_failed,
            elsewhere=tuple(r.id for r in every if r.is_open and r.terms.model_name != name),
        )


def failed_audits(known: Ledger) -> list[Move]:
    """What an audit was about to write when it was ended: a request that failed it is open again."""
    return [
        Move(
            name="reopened",
            request=request.id,
            details={"reason": last.details.get("reason", "a failed audit")},
        )
        for request in known.requests.values()
        if request.is_answered
        and (last := request.history[-1]).move == "audited"
        and not last.details["passed"]
    ]


def reason_of(block: Mapping[str, Any], bound: float) -> str:
    """Why a request does not hold, from its block of result.json."""
    per_class = (block["forget_fraction"] or {}).get("per_class") or {}
    above = [
        f"class {label} is sampled {share['value']:.1%} of {share['n']} times, at most {share['high']:.1%}"
        f" with 95 % confidence; expected at most {bound:.1%}"
        for label, share in per_class.items()
        if share["high"] > bound
    ]
    auc = block.get("membership_auc")
    if not above and auc is not None:
        above = [f"the loss attack tells its samples from never-seen ones with AUC {auc:.2f}"]
    return "; ".join(above) or "it was not measured"


def of_model(config: ProcessConfig) -> list[Request]:
    """The open and answered requests of the model. Raises `InputError` for those of another lake: one run
    reads one."""
    lake = storage.absolute(config.lake) if "/" in config.lake else config.lake
    requests = merge.of_model(ledger.read(config.storage), config.tracking.model_name)
    for request in requests:
        if request.terms.lake != lake:
            raise InputError(
                f"lake: got {config.lake!r}, but request {request.id} to {request.terms.model_name} is about"
                f" {request.terms.lake!r}; a model has one lake: give the other another tracking.model_name"
            )
    return requests


def require_known(config: ProcessConfig, known: Ledger, champion: Version | None) -> None:
    """Raise `InputError` for a serving version that honours what the ledger has never heard of."""
    if champion and (unknown := [name for name in champion.request_ids if name not in known.requests]):
        submit = command(
            "ledger submit",
            config_for("process", config.lake),
            config.storage,
            f"request.id={unknown[0]}",
            "request.classes=<its classes>",
        )
        raise InputError(
            f"version {champion.number}, which serves, honours request {unknown[0]}, which the ledger does"
            f" not know, so the next version would not honour it; submit it first: `{submit}`"
        )


def _is_news(request: Request, move: Move) -> bool:
    last = request.history[-1]
    return request.is_open and (last.move, last.details) != (move.name, move.details)


def _answers(known: Ledger, plan: Plan, outcome: Outcome) -> list[Move]:
    """`answered` for what the run answers. Nothing at all where one of its requests was withdrawn meanwhile:
    that one is not to be honoured, so the rest has another run."""
    requests = [known.requests[request.id] for request in plan.union.open]
    if any(request.state == "withdrawn" for request in requests):
        return []
    waiting = [request for request in requests if request.is_open and request.id not in outcome.failures]
    details = {"version": outcome.version, "run_id": plan.run_id}
    return [
        # its submission was ended between two entries
        Move(name="accepted", request=request.id)
        if request.state == "received"
        else Move(name="answered", request=request.id, details=details)
        for request in waiting
    ]


def _closures(known: Ledger, ids: Sequence[str], champion: Version | None) -> list[Move]:
    return [
        Move(name="closed", request=name, details={"version": champion.number})
        for name in ids
        if champion is not None and name in champion.request_ids and known.requests[name].state == "answered"
    ]
