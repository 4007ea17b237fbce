"""Measuring answered requests once more, on the version that serves and with fresh noise. One that no longer
holds is open again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.config import Gate
from pipeline.config.commands import registry_command
from pipeline.config.process import ProcessConfig
from pipeline.config.request import Answer
from pipeline.data.lake import lake_uri, read_lake
from pipeline.errors import InputError
from pipeline.evaluation.answers import answered
from pipeline.lease import held
from pipeline.requests import ledger, merge, page
from pipeline.requests import plan as planning
from pipeline.requests.ledger import Ledger, Move, Request
from pipeline.requests.merge import Union
from pipeline.requests.plan import Version
from pipeline.requests.process import LEASE, failed_audits, of_model, reason_of
from pipeline.seeding import seed_of

# (version, what was asked, seed) -> the `after` block of an evaluation
Measure = Callable[[int, Union, int], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Audit:
    """`passed` and `failed` (with the reason) by request; `unmeasured`: samples whose rows were purged."""

    version: int
    passed: tuple[str, ...]
    failed: Mapping[str, str]
    unmeasured: tuple[str, ...]


def audit(config: ProcessConfig, champion: Version | None, measure: Measure, gate: Gate) -> Audit:
    """Measure every answered request of the model on `champion`, and note the outcome in the ledger. Raises
    `InputError` where no version serves, or nothing was answered."""
    if champion is None:
        raise InputError(
            f"{config.tracking.model_name}: no version serves, so there is none to measure;"
            f" `{registry_command('promote', config.tracking, config.storage)}` makes a champion"
        )
    lake = read_lake(lake_uri(config.storage, config.lake))
    with held(storage.join(ledger.folder(config.storage), LEASE), lasts_s=config.lease_s) as lease:

        def write(decide: Callable[[Ledger], Sequence[Move]]) -> None:
            def under_lease(known: Ledger) -> Sequence[Move]:
                lease.require()
                return decide(known)

            ledger.append(config.storage, under_lease)

        write(failed_audits)
        requests = [
            request
            for request in merge.answered_requests(of_model(config))
            if request.state == "closed" or request.id in champion.request_ids  # others wait for approval
        ]
        if not requests:
            raise InputError("the ledger: no request was answered yet, so there is nothing to measure again")
        rows = planning.rows_of(requests, lake, config.storage)
        union = merge.union(requests, rows.ids)
        answers = [Answer.model_validate(planning.answer(request, union, rows)) for request in requests]
        measured = [item for item in answers if item.classes or item.sample_count]
        # each audit leaves entries, so the next one has other noise
        entries = len(ledger.read(config.storage).entries)
        seed = seed_of("audit", config.tracking.model_name, entries) % 2**31
        after = measure(champion.number, union, seed) if measured else {}
        reasons = _reasons(measured, champion, after, gate)
        moves = {
            item.id: Move(
                name="audited",
                request=item.id,
                details={"version": champion.number, "passed": item.id not in reasons, "seed": seed}
                | ({"reason": reasons[item.id]} if item.id in reasons else {}),
            )
            for item in measured
        }
        write(lambda known: [*failed_audits(known), *_missing(known, moves)])
        page.write(config.storage)
    return Audit(
        version=champion.number,
        passed=tuple(name for name in moves if name not in reasons),
        failed=reasons,
        unmeasured=tuple(item.id for item in answers if item not in measured),
    )


def _reasons(
    measured: Sequence[Answer], champion: Version, after: Mapping[str, Any], gate: Gate
) -> dict[str, str]:
    """Why requests do not hold on the champion."""
    blocks = {str(block["id"]): block for block in answered(measured, after, gate)}
    reasons = {
        name: reason_of(block, gate.max_forget_fraction)
        for name, block in blocks.items()
        if not block["closed"]
    }
    unknown = [item.id for item in measured if item.id not in champion.request_ids]
    not_honoured = f"version {champion.number}, which serves, was not made to honour it"
    return dict.fromkeys(unknown, not_honoured) | reasons


def _missing(known: Ledger, moves: Mapping[str, Move]) -> list[Move]:
    """Those of `moves` that are not in the ledger yet."""

    def is_written(request: Request, move: Move) -> bool:
        return any((entry.move, entry.details) == (move.name, move.details) for entry in request.history)

    return [
        move
        for name, move in moves.items()
        if known.requests[name].is_answered and not is_written(known.requests[name], move)
    ]
