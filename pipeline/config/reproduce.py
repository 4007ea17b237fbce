"""Reproducing a published table: the same start, the same protocol, our methods."""

from typing import Literal

from pydantic import Field

from pipeline.config.base import Fraction, JobConfig, Section
from pipeline.config.unlearn import Judge, Model


class Published(Section):
    """What the authors print for a row; absent where they print nothing."""

    steps: float
    steps_spread: float
    seconds_per_step: float
    frechet: float


class ReproducedRow(Section):
    """One row of the table. `penalty` and `hat_weight` are the published numbers, which weigh losses summed
    over the batch."""

    method: str
    penalty: float = Field(0.0, ge=0)
    hat_weight: float = Field(0.0, ge=0)
    surgery_hat_weight: float | None = Field(
        None, ge=0, description="uno_s: another hat weight for its surgery steps; absent: the same"
    )
    surgery_every: int = Field(2, ge=1)
    max_steps: int | None = Field(None, ge=1, description="absent: that of the whole table")
    reading: str = Field(min_length=1, description="what the row is, in words")
    published: Published | None = None
    published_count: Literal["first", "last"] = Field(
        "first", description="whether the published steps are the first below or the last above"
    )


class ReproduceConfig(JobConfig):
    name: str = Field("mnist", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    lake: str = "mnist"
    model: Model = Model(size="vae-mnist")
    judge: Judge = Judge()
    forget: int = Field(1, ge=0)
    seeds: list[int] = Field(list(range(10)), min_length=1)
    batch_size: int = Field(128, ge=2)
    latents: int = Field(
        128, ge=1, description="fixed samples that are judged at every step, and that the hat term sees"
    )
    threshold: Fraction = 0.02
    lr: float = Field(1e-3, gt=0)
    max_steps: int = Field(530, ge=1)
    check_every: int = Field(
        5, ge=1, description="steps between two checks on fresh samples, for the settled step"
    )
    check_samples: int = Field(1000, ge=100)
    hold_steps: int = Field(
        53,
        ge=1,
        description="steps that every check must stay below the threshold: one pass of the forgotten class",
    )
    frechet_samples: int = Field(10000, ge=1000)
    timing_repeats: int = Field(21, ge=3)
    processes: int = Field(1, ge=1)
    rows: dict[str, ReproducedRow] = Field(min_length=1)
