"""A model for the processor's tests: versions are files, a run takes as long as it takes to write them."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.errors import InputError
from pipeline.requests.plan import Plan, Version
from pipeline.requests.process import Outcome

STEPS = 8


class PretendedModel:
    """`failures`: by request, why it never holds on any weights. `refusals`: why no version may serve.
    `during` is called with the plan while its run is at work."""

    def __init__(
        self,
        root: str,
        *,
        failures: Mapping[str, str] | None = None,
        refusals: tuple[str, ...] = (),
        during: Callable[[Plan], None] = lambda plan: None,
        step_s: float = 0.0,
        may_serve: Callable[[int], bool] = lambda version: True,
    ) -> None:
        self.root, self.failures, self.refusals = Path(root), failures or {}, refusals
        self.during, self.step_s, self.may_serve = during, step_s, may_serve
        self.plans: list[Plan] = []

    def champion(self) -> Version | None:
        path = self.root / "champion.json"
        if not path.exists():
            return None
        number = storage.read_json(str(path))["version"]
        return Version(number=number, request_ids=tuple(self.versions()[number]["request_ids"]))

    def versions(self) -> dict[int, dict[str, Any]]:
        folder = self.root / "versions"
        return {
            int(Path(name).stem): storage.read_json(str(folder / name))
            for name in storage.listing(str(folder))
        }

    def check(self, plan: Plan) -> None:
        if not plan.config.request.classes and not plan.config.request.sample_ids:
            raise InputError("request: got neither classes nor sample_ids")
        if plan.list_uri is not None:
            assert storage.read_bytes(plan.list_uri).decode().split() == list(plan.union.sample_ids)

    def answer(self, plan: Plan) -> Outcome:
        self.plans.append(plan)
        run = self.root / "runs" / plan.run_id
        if not (run / "result.json").exists():
            for step in range(STEPS):
                if not (run / f"{step}").exists():  # a run goes on where it was
                    time.sleep(self.step_s)
                    storage.write_text(str(run / f"{step}"), "")
            self.during(plan)
            storage.write_json(str(run / "result.json"), {"version": self._register(plan)})
        version = storage.read_json(str(run / "result.json"))["version"]
        failures = {name: why for name, why in self.failures.items() if name in plan.request_ids}
        refused = tuple(f"request {name} fails" for name in failures) if self.refusals else ()
        return Outcome(version=version, refusals=refused or self.refusals, failures=failures)

    def promote(self, version: int) -> None:
        if not self.may_serve(version):
            raise InputError(f"version {version} may not serve")
        storage.write_json(str(self.root / "champion.json"), {"version": version})

    def _register(self, plan: Plan) -> int:
        """Once for a run, as the registry does."""
        content = {"run_id": plan.run_id, "request_ids": plan.request_ids, "start": plan.start.weights}
        while True:
            versions = self.versions()
            if known := [number for number, facts in versions.items() if facts["run_id"] == plan.run_id]:
                return known[0]
            number = len(versions) + 1
            if storage.create(str(self.root / "versions" / f"{number}.json"), storage_json(content)):
                return number


def storage_json(value: Any) -> bytes:
    import json

    return json.dumps(value).encode()
