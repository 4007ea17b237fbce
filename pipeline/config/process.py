"""Answering the deletion requests of a model: from what, how, and who decides that the result serves.

jobs/ledger.py and jobs/process_requests.py read one file, so the ledger's configuration has these keys as
well; of them its `audit` reads `audit` and `unlearn`, and the other verbs none but `lake` and `tracking`.
"""

from copy import deepcopy
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.base import JobConfig, LakeName, Section
from pipeline.config.conditions import Only, has, pop, while_
from pipeline.config.reading import parse, parse_given
from pipeline.config.request import Request
from pipeline.config.tracking import Registry
from pipeline.config.unlearn import UnlearnConfig
from pipeline.errors import InputError

OF_THE_FILE = ("retain", "neighbours", "nearest_by", "reason")  # the rest of `request` the ledger decides
DECIDED = (  # keys of the main job that may not stand in `unlearn`
    *("storage", "run_id", "lake", "tracking.uri", "tracking.model_name", "require_gate"),
    *(f"request.{name}" for name in Request.model_fields if name not in OF_THE_FILE),
)
ASKED = {"classes": [0], "exchange": {0: 1}}  # stands for whatever may be asked


class Audit(Section):
    """Measuring what was answered once more: on the version that serves, with fresh noise."""

    samples: int = Field(200, ge=20, description="images sampled under each forgotten label")
    workers: int = Field(2, ge=1, description="Ray tasks at once")
    cpus_per_worker: float = Field(0.5, gt=0, description="CPUs that a task reserves")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs that a task reserves")


class ProcessConfig(JobConfig):
    conditions: ClassVar[tuple[Only, ...]] = (while_("rehearse_samples", "rehearse", "samples"),)

    lake: LakeName = Field("digits", description="name or URI of the lake that the requests are about")
    tracking: Registry = Registry()
    start: Literal["auto", "base", "champion"] = Field(
        "auto",
        description="the weights a run starts from; auto: base while the rows of every answered request are"
        " there, else champion",
    )
    rehearse: Literal["none", "samples"] = Field(
        "none",
        description="samples: where rows of answered classes were purged, samples that the base draws under"
        " their old labels stand in for them, and the certificate says so",
    )
    rehearse_samples: int = Field(200, ge=20, description="samples drawn for each such class")
    promote: Literal["automatic", "approval"] = Field(
        "approval",
        description="automatic: what passed its gate becomes champion at once; approval: somebody promotes it"
        " with jobs/registry.py, and the next call closes its requests",
    )
    key: str | None = Field(
        None,
        description="Ed25519 private key (PEM file) that signs the certificate of an automatic promotion",
    )
    require_gate: bool = Field(
        False, description="end with exit code 4, and not 3, where the gate of a run failed"
    )
    lease_s: float = Field(
        300.0, gt=30, description="seconds until a processor that stopped renewing its lease may be replaced"
    )
    unlearn: dict[str, Any] = Field(
        {},
        description="keys of jobs/unlearn_imagenet.py for the run that answers, without those that the"
        " requests decide",
    )
    audit: Audit = Audit()

    @model_validator(mode="after")
    def _of_the_main_job(self) -> "ProcessConfig":
        if decided := [key for key in DECIDED if has(self.unlearn, key)]:
            raise ValueError(
                f"unlearn.{decided[0]}: got {at_key(self.unlearn, decided[0])!r}, which the requests and the"
                " keys beside unlearn decide; expected it to be left out"
            )
        try:
            require_settings(self.unlearn)
        except InputError as error:
            raise ValueError(f"unlearn: {error}") from error
        return self


def at_key(values: Any, key: str) -> Any:
    """The value of a dotted key in nested mappings that have it."""
    for part in key.split("."):
        values = values[part]
    return values


def require_settings(unlearn: dict[str, Any]) -> None:
    """Raise `InputError` for keys that the main job does not have, or that do nothing whatever is asked."""
    values = {**deepcopy(unlearn), "request": {**unlearn.get("request", {}), **ASKED}}
    parse(UnlearnConfig, values)
    for only in UnlearnConfig.conditions:
        if "request.sample_ids" in only.switches and only.holds("ids.txt"):
            for key in only.keys:  # read where samples are named, which a request may do
                if has(values, key):
                    pop(values, *key.split("."))
    parse_given(UnlearnConfig, values)
