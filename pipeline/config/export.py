"""A registered version, or a folder of weights, in the formats that others read."""

from typing import ClassVar, Literal

from pydantic import Field

from pipeline.config.base import JobConfig, Version
from pipeline.config.conditions import Only, unless
from pipeline.config.tracking import Registry
from pipeline.config.weights import Decoder


class ExportConfig(JobConfig):
    conditions: ClassVar[tuple[Only, ...]] = (
        unless("tracking version", "weights"),
        Only(keys=("size",), switches=("weights",)),
        Only(keys=("encoder.sha256",), switches=("encoder.weights",)),
    )

    tracking: Registry = Registry()
    version: Version = "candidate"
    weights: str | None = Field(
        None, description="folder or published weights to export instead of a registered version"
    )
    size: str | None = Field(None, description="of weights that are a bare state dict")
    encoder: Decoder = Decoder()
    format: Literal["pipeline", "pt", "safetensors"] = Field(
        "pipeline",
        description="a DiTPipeline folder of diffusers, or a plain state dict with the published names",
    )
    output: str | None = Field(
        None, description="folder or file, any URI; absent: <storage>/exports/<model>-v<version>"
    )
