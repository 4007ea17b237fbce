"""Every setting of a grid on several requests and seeds."""

from typing import Any

from pydantic import Field

from pipeline.config.base import JobConfig, LakeName, Name


class CompareConfig(JobConfig):
    name: Name = Field("digits", description="of the file of results, under comparisons/")
    lake: LakeName = Field("digits", description="name or URI of the lake to read")
    seeds: list[int] = Field([0, 1, 2, 3, 4], min_length=1, description="a run of every row and pair each")
    pairs: list[tuple[int, int]] = Field(
        [(1, 7), (3, 5)], min_length=1, description="forgotten class, exchange class"
    )
    processes: int = Field(2, ge=1, description="runs side by side, each on one thread")
    unlearn: dict[str, Any] = Field({}, description="settings of the main job that all rows share")
    rows: dict[str, dict[str, Any]] = Field(
        min_length=1, description="name of a row -> the settings it changes, by dotted key"
    )
