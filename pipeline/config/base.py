"""What every section and every job's configuration is made of."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from pipeline import storage

Fraction = Annotated[float, Field(ge=0, le=1)]
Version = Annotated[
    str, BeforeValidator(str), Field(min_length=1, description="alias or number of a registered version")
]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class JobConfig(Section):
    """What every job has."""

    storage: str = Field("./runs", validate_default=True)
    seed: int = Field(0, ge=0)

    @field_validator("storage")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return storage.absolute(value)
