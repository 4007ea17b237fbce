"""Images of a registered version."""

from typing import Annotated

from pydantic import Field

from pipeline.config.base import JobConfig, Version
from pipeline.config.sampling import Sampler
from pipeline.config.tracking import Registry


class GenerateConfig(JobConfig):
    tracking: Registry = Registry()
    version: Version = "candidate"
    labels: list[int] = Field([1], min_length=1, description="a row of the picture each")
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field(
        [0, 1, 2, 3, 4, 5, 6, 7], min_length=1, description="a column of the picture each"
    )
    cfg_scale: float | None = Field(None, ge=0, description="absent: the scale the model was registered with")
    steps: int | None = Field(
        None, ge=1, description="sampler steps; absent: those the model was registered with"
    )
    sampler: Sampler | None = Field(
        None, description="another sampler than the one the model was registered with"
    )
    output: str | None = Field(
        None, description="PNG to write; absent: <storage>/generated/<model>-v<version>.png"
    )
    audit: str | None = Field(
        None,
        min_length=3,
        description=(
            "sample classes that a deletion request blocks as well: the reason, which is recorded in the log"
            " of the model's aliases"
        ),
    )
