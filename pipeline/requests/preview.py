"""What the next call of the processor would do: for --dry-run. Nothing is written."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline import storage
from pipeline.config.process import ProcessConfig
from pipeline.data.lake import lake_uri, read_lake
from pipeline.lease import require_free
from pipeline.requests import ledger
from pipeline.requests import plan as planning
from pipeline.requests.plan import Plan
from pipeline.requests.process import LEASE, NOTHING_NEW, Model, of_model, require_known


@dataclass(frozen=True, kw_only=True)
class Preview:
    """`plan`: the first run; None where there is none. `left`: requests that would stay open, each with the
    reason. `awaiting`: answered ones, each with the version that does not serve yet. `refused`: by id."""

    plan: Plan | None
    left: Mapping[str, str]
    awaiting: Mapping[str, int]
    refused: tuple[str, ...]
    automatic: bool = True  # whether such a version is promoted by policy

    @property
    def alarms(self) -> bool:
        return bool(self.left or self.refused)

    @property
    def lines(self) -> list[str]:
        then = "would serve" if self.automatic else "waits for somebody to promote it"
        waiting = [f"request {name}: version {number} {then}" for name, number in self.awaiting.items()]
        stay = [f"left: request {name}: {reason}" for name, reason in self.left.items()]
        refused = [f"refused: {', '.join(self.refused)}"] if self.refused else []
        plan = self.plan.lines if self.plan else [] if self.left else ["nothing is open"]
        return [*plan, *waiting, *stay, *refused]


def preview(config: ProcessConfig, model: Model) -> Preview:
    """Raises `InputError` for what would stop the processor, whatever it is about."""
    lake = read_lake(lake_uri(config.storage, config.lake))
    require_free(storage.join(ledger.folder(config.storage), LEASE), time.time())
    requests, champion = of_model(config), model.champion()
    known = ledger.read_whole(config.storage)
    require_known(config, known, champion)
    rows = planning.rows_of(requests, lake, config.storage)
    left = planning.hopeless(config, requests, rows)
    able = [request for request in requests if request.id not in left]
    plan = None
    if any(request.is_open for request in able):
        plan = planning.make(config, able, rows, champion)
        if plan.is_empty:
            left |= dict.fromkeys((request.id for request in plan.union.open), NOTHING_NEW)
            plan = None
        else:
            with _listed(plan) as listed:
                model.check(listed)
            left |= _tried(plan)
    return Preview(
        plan=plan,
        left=left,
        awaiting={
            request.id: request.version or 0
            for request in requests
            if request.state == "answered" and (champion is None or request.id not in champion.request_ids)
        },
        automatic=config.promote == "automatic",
        refused=tuple(
            request.id
            for request in known.requests.values()
            if request.state == "refused" and request.terms.model_name == config.tracking.model_name
        ),
    )


def _tried(plan: Plan) -> dict[str, str]:
    """Requests that this very run has been tried on and left open, each with the reason: it would again."""
    last = {request.id: request.history[-1] for request in plan.union.open}
    return {
        name: str(entry.details["reason"])
        for name, entry in last.items()
        if entry.move == "postponed" and entry.details.get("run_id") == plan.run_id
    }


@contextmanager
def _listed(plan: Plan) -> Iterator[Plan]:
    """`plan` with its samples listed in a file that is there: the run's own is written with the run."""
    if plan.list_uri is None or storage.exists(plan.list_uri):
        yield plan
        return
    with TemporaryDirectory() as folder:
        uri = str(Path(folder, planning.LIST))
        storage.write_text(uri, "\n".join(plan.union.sample_ids) + "\n")
        request = plan.config.request.model_copy(update={"sample_ids": uri})
        yield replace(plan, config=plan.config.model_copy(update={"request": request}), list_uri=uri)
