"""Where runs and versions are recorded."""

from typing import Literal

from pydantic import Field

from pipeline.config.base import Name, Section


class Registry(Section):
    """Where registered versions are found."""

    uri: str | None = Field(None, description="MLflow tracking URI; absent: SQLite under the storage root")
    model_name: Name = Field("dit-digits-unlearned", description="the registered model")


class Tracking(Registry):
    experiment: str = Field(
        "unlearning",
        pattern=r"^[^\x00-\x1f]*[^\s\x00-\x1f][^\x00-\x1f]*$",
        description="MLflow experiment of the runs",
    )
    pipeline: bool = Field(
        False, description="leave the model under the run as a DiTPipeline folder of diffusers as well"
    )
    artifact: Literal["full", "delta"] = Field(
        "full",
        description=(
            "what a version holds: all weights, or the trained subset and the digest of the base it"
            " belongs to"
        ),
    )
