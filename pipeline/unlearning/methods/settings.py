"""The settings of a method: those all methods share stand in the configuration, its own in its file."""

from pydantic import BaseModel, ConfigDict


class MethodSettings(BaseModel):
    """A method without settings of its own, and the base of those that have some."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
