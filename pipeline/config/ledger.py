"""The ledger of deletion requests: what is asked for, by when, on whose word.

One file serves jobs/ledger.py and jobs/process_requests.py, so the keys of the latter are known here;
`audit` reads some of them, the other verbs none but `lake` and `tracking`.
"""

import datetime
from typing import ClassVar

from pydantic import ConfigDict, Field

from pipeline.config.base import Section
from pipeline.config.conditions import Only, unless
from pipeline.config.process import ProcessConfig
from pipeline.config.request import Exchange, RequestId


class RequestedScope(Section):
    """What is to be forgotten: whole classes, named samples, or both."""

    id: RequestId | None = Field(
        None, description="letters, digits, ._-, at most 100; absent: made of the lake and what is asked"
    )
    classes: list[int] = Field([], description="classes to forget whole")
    sample_ids: str | None = Field(
        None, description="URI of a text file with one sample id a line; the ledger keeps their hashes"
    )
    exchange: Exchange = Field(
        {}, description="forgotten class -> the class, or classes, that its label gives from now on"
    )
    without_exchange: bool = Field(False, description="accept a forgotten class without an exchange class")


class LedgerConfig(ProcessConfig):
    model_config = ConfigDict(populate_by_name=True)
    conditions: ClassVar[tuple[Only, ...]] = (*ProcessConfig.conditions, unless("due_days", "due"))
    keys_of_verb: ClassVar[dict[str, tuple[str, ...]]] = {
        "submit": ("request", "received", "due", "due_days", "legal_basis", "approver"),
        "list": (),
        "show": ("request",),
        "withdraw": ("request", "reason"),
        "reopen": ("request", "reason"),
        "status": (),
        "audit": (),
    }

    request: RequestedScope = RequestedScope()
    received: datetime.date | None = Field(None, description="when it came in; absent: today, in UTC")
    due: datetime.date | None = Field(
        None, description="the last day to answer it; absent: due_days after it came in"
    )
    due_days: int = Field(
        30, ge=0, description="days to answer a request; GDPR, article 12 (3), gives one month"
    )
    legal_basis: str = Field("", max_length=1000, description="kept as it is given")
    approver: str = Field("", max_length=1000, description="kept as it is given")
    reason: str | None = Field(
        None, min_length=3, max_length=1000, description="why it is withdrawn or open again; kept"
    )
    as_json: bool = Field(False, alias="json", description="print JSON")
