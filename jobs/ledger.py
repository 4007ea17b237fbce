"""The ledger of deletion requests: what was asked, by when, and which version answered it.

python jobs/ledger.py submit   --config jobs/configs/process_digits.yaml --set request.id=r1
    --set 'request.classes=[1]' --set 'request.exchange={1: 7}' --set due=2026-12-31
python jobs/ledger.py list     --config ...                       (what is due, overdue, answered)
python jobs/ledger.py show     --config ... --set request.id=r1   (one request with its history)
python jobs/ledger.py withdraw --config ... --set request.id=r1 --set 'reason=...'  (unless it was answered)
python jobs/ledger.py reopen   --config ... --set request.id=r1 --set 'reason=...'  (its answer is refused)
python jobs/ledger.py status   --config ...   (counts; exits 3 when something is overdue or refused)
python jobs/ledger.py audit    --config ...   (measures what was answered once more; exits 3 when it fails)

Each prints JSON with --json.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import storage
from pipeline.config.ledger import LedgerConfig
from pipeline.errors import InputError
from pipeline.runtime import command_line

if TYPE_CHECKING:
    from pipeline.requests.ledger import Ledger, Request

ALARM = 3  # exit code: something is overdue or refused


def submit(config: LedgerConfig, dry_run: bool) -> None:
    from pipeline.requests import ledger, overview, page, submit

    request, is_new = submit.submit(config, dry_run=dry_run)
    uri = None if dry_run else page.write(config.storage)
    if config.as_json:
        _print_json(ledger.as_json(request, ledger.today()))
        return
    terms = request.terms
    due = f"due {terms.due}" + (", which is past: overdue" if request.is_overdue(ledger.today()) else "")
    print(f"request {request.id}: {overview.scope_text(terms)} ({terms.model_name}), {due}")
    if not is_new:
        print(f"it is in the ledger already, {request.state}; nothing was changed")
        if config.due not in (None, terms.due):
            print(f"its due date stays {terms.due}, not {config.due}")
    elif dry_run:
        print("would be accepted; nothing was written")
    if is_new and (others := overview.other_models(ledger.read(config.storage), request)):
        print(f"it is the first request to {terms.model_name}; those before are to {', '.join(others)}")
    if uri:
        print(f"page: {uri}")


def require_root(config: LedgerConfig) -> None:
    """A mistyped root would look like one at which nothing was ever asked."""
    if not storage.exists(config.storage):
        raise InputError(f"storage: there is nothing at {config.storage}, expected a storage root")


def list_(config: LedgerConfig, dry_run: bool) -> None:
    from pipeline.requests import ledger, overview

    require_root(config)
    snapshot, today = ledger.read_whole(config.storage), ledger.today()
    _warn_of_block_list(config.storage, snapshot)
    if config.as_json:
        _print_json([ledger.as_json(request, today) for request in overview.in_order(snapshot)])
    elif snapshot.requests:
        print("\n".join(overview.aligned(overview.table(snapshot, today))))
    else:
        print("no requests yet")


def _warn_of_block_list(storage_root: str, snapshot: "Ledger") -> None:
    from pipeline.requests import block_list, ledger

    uri = storage.join(ledger.folder(storage_root), block_list.BLOCKED)
    if snapshot.requests and not storage.exists(uri):
        print(
            f"warning: {uri} is missing, so programs that serve do not know what is blocked; submit any"
            " request once more, which changes nothing else, to have it written again",
            file=sys.stderr,
        )


def show(config: LedgerConfig, dry_run: bool) -> None:
    from pipeline.requests import ledger, overview

    request, today = ledger.read(config.storage).find(config.request.id), ledger.today()
    if config.as_json:
        _print_json(ledger.as_json(request, today))
    else:
        print("\n".join([f"request {request.id}", *overview.details(request, today)]))


def withdraw(config: LedgerConfig, dry_run: bool) -> None:
    from pipeline.requests import submit

    request = submit.withdraw(config, dry_run=dry_run)
    _moved(config, request, "would be withdrawn" if dry_run else request.state, dry_run)


def reopen(config: LedgerConfig, dry_run: bool) -> None:
    from pipeline.requests import submit

    request = submit.reopen(config, dry_run=dry_run)
    _moved(config, request, "would be open again" if dry_run else request.state, dry_run)


def _moved(config: LedgerConfig, request: "Request", state: str, dry_run: bool) -> None:
    from pipeline.requests import ledger, page

    if not dry_run:
        page.write(config.storage)
    if config.as_json:
        _print_json(ledger.as_json(request, ledger.today()))
    else:
        print(f"request {request.id}: {state}")


def status(config: LedgerConfig, dry_run: bool) -> int:
    from pipeline.requests import ledger, overview

    require_root(config)
    counts = overview.status(ledger.read_whole(config.storage), ledger.today())
    if config.as_json:
        _print_json(counts)
    else:
        print(", ".join(f"{count} {state}" for state, count in counts["counts"].items()) or "no requests yet")
        following = counts["next_due"]
        print(f"next due: {following['id']}, {following['due']}" if following else "next due: nothing")
        for word in ("overdue", "refused"):
            if counts[word]:
                print(f"{word}: {', '.join(counts[word])}")
    return ALARM if counts["overdue"] or counts["refused"] else 0


def audit(config: LedgerConfig, dry_run: bool) -> int:
    from pipeline.config import Gate
    from pipeline.requests import audit
    from pipeline.requests.main_job import RegisteredModel

    model = RegisteredModel(config)
    if dry_run:
        print("would measure every answered request on the version that serves; nothing was written")
        return 0
    gate = Gate.model_validate(config.unlearn.get("gate", {}))
    outcome = audit.audit(config, model.champion(), model.measure, gate)
    if config.as_json:
        _print_json(asdict(outcome))
    else:
        print(f"measured again on version {outcome.version}: {len(outcome.passed)} passed")
        for name, reason in outcome.failed.items():
            print(f"failed, and open again: request {name}: {reason}")
        for name in outcome.unmeasured:
            print(f"not measured: request {name}, whose samples were purged")
    return ALARM if outcome.failed else 0


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


VERBS = {
    "submit": submit,
    "list": list_,
    "show": show,
    "withdraw": withdraw,
    "reopen": reopen,
    "status": status,
    "audit": audit,
}

if __name__ == "__main__":
    sys.exit(command_line.main(LedgerConfig, VERBS, __doc__, flags=["json"]))
