"""Reproducing a published table: the same start, the same protocol, our methods."""

from typing import Literal

from pydantic import Field

from pipeline.config.base import Fraction, JobConfig, LakeName, Name, Section
from pipeline.config.weights import Judge, ModelWeights


class Published(Section):
    """What the authors print for a row; absent where they print nothing."""

    steps: float = Field(description="mean steps to forget")
    steps_spread: float = Field(description="their standard deviation")
    seconds_per_step: float = Field(description="seconds of a step")
    frechet: float = Field(description="Frechet distance")


class ReproducedRow(Section):
    """One row of the table. `penalty` and `uniformity_weight` are the published numbers, which weigh losses
    summed over the batch."""

    method: str = Field(description="a method of pipeline/unlearning/methods/table.py")
    penalty: float = Field(0.0, ge=0, description="weight of the penalty")
    uniformity_weight: float = Field(0.0, ge=0, description="weight of the hat term")
    surgery_uniformity_weight: float | None = Field(
        None, ge=0, description="uno_s: another hat weight for its surgery steps; absent: the same"
    )
    surgery_every: int = Field(2, ge=1, description="uno_s: every k-th step is a surgery step")
    max_steps: int | None = Field(None, ge=1, description="absent: that of the whole table")
    reading: str = Field(min_length=1, description="what the row is, in words")
    published: Published | None = None
    published_count: Literal["first", "last"] = Field(
        "first", description="whether the published steps are the first below or the last above"
    )


class ReproduceConfig(JobConfig):
    name: Name = Field("mnist", description="of the table, under reproductions/")
    lake: LakeName = Field("mnist", description="name or URI of the lake to read")
    model: ModelWeights = ModelWeights(size="vae-mnist")
    judge: Judge = Judge()
    forget: int = Field(1, ge=0, description="the class that is forgotten")
    seeds: list[int] = Field(list(range(10)), min_length=1, description="a run of every row each")
    batch_size: int = Field(128, ge=2, description="rows of each kind in a step")
    latents: int = Field(
        128, ge=1, description="fixed samples that are judged at every step, and that the hat term sees"
    )
    threshold: Fraction = Field(0.02, description="share below which the class counts as forgotten")
    lr: float = Field(1e-3, gt=0, description="learning rate of Adam")
    max_steps: int = Field(530, ge=1, description="steps of a run")
    check_every: int = Field(
        5, ge=1, description="steps between two checks on fresh samples, for the settled step"
    )
    check_samples: int = Field(1000, ge=100, description="fresh samples of such a check")
    patience_steps: int = Field(
        53,
        ge=1,
        description="steps that every check must stay below the threshold: one pass of the forgotten class",
    )
    frechet_samples: int = Field(10000, ge=1000, description="samples that the Frechet distance is taken of")
    timing_repeats: int = Field(21, ge=3, description="timed steps of each row, in turn")
    processes: int = Field(1, ge=1, description="runs side by side, each on one thread")
    rows: dict[str, ReproducedRow] = Field(min_length=1, description="name of a row -> what it runs")
