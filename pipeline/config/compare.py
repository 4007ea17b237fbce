"""Every setting of a grid on several requests and seeds."""

from typing import Any

from pydantic import Field, model_validator

from pipeline.config.base import JobConfig, LakeName, Name, Section


class NamedSamples(Section):
    """A request for single images."""

    name: Name = Field(description="as the board calls it")
    sample_ids: str = Field(description="URI of a text file with one sample id a line: samples to forget")


class CompareConfig(JobConfig):
    name: Name = Field("digits", description="of the file of results, under comparisons/")
    lake: LakeName = Field("digits", description="name or URI of the lake to read")
    seeds: list[int] = Field([0, 1, 2, 3, 4], min_length=1, description="a run of every row and pair each")
    pairs: list[tuple[int, int]] = Field(
        [(1, 7), (3, 5)],
        description="requests for whole classes: forgotten class, exchange class; [] beside requests: none",
    )
    requests: list[NamedSamples] = Field([], description="requests for single images, beside the pairs")
    processes: int = Field(2, ge=1, description="runs side by side, each on one thread")
    unlearn: dict[str, Any] = Field({}, description="settings of the main job that all rows share")
    cpu_seconds: float | None = Field(
        None,
        gt=0,
        description=(
            "CPU seconds that every run may take for its steps and what its method prepares, settled or not;"
            " absent: each ends by its own rule"
        ),
    )
    shards: int = Field(1, ge=1, description="machines that share the runs, each by a command of its own")
    shard: int = Field(0, ge=0, description="which of the shards this one is, from 0")
    attack_results: Name | None = Field(
        None,
        description="name of a comparison of jobs/attack_methods.py with the same rows, for the board",
    )
    rows: dict[str, dict[str, Any]] = Field(
        min_length=1, description="name of a row -> the settings it changes, by dotted key"
    )

    @model_validator(mode="after")
    def _requests(self) -> "CompareConfig":
        if not self.pairs and not self.requests:
            raise ValueError("pairs: got none, and no requests either; expected at least one to compare on")
        names = [request.name for request in self.requests]
        if len(set(names)) < len(names):
            raise ValueError(f"requests: got the names {names}, expected each once")
        return self

    @model_validator(mode="after")
    def _shard(self) -> "CompareConfig":
        if self.shard >= self.shards:
            raise ValueError(f"shard: got {self.shard} of {self.shards}, expected 0 to {self.shards - 1}")
        return self
