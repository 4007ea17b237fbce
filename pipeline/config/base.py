"""What every section and every job's configuration is made of."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, field_validator

from pipeline import storage
from pipeline.config.conditions import Only

Fraction = Annotated[float, Field(ge=0, le=1)]
Version = Annotated[
    str, BeforeValidator(str), Field(min_length=1, description="alias or number of a registered version")
]
SHA256 = r"^[0-9a-fA-F]{64}$"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # of what lies in a folder called so


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class OpenSection(Section):
    """A section that names a thing by its key `named` and holds that thing's own settings beside its common
    keys, as attributes like them.

    What they may be is known to the table of such things: `own_settings.complete` checks them.
    """

    model_config = ConfigDict(extra="allow")
    named: ClassVar[str]
    _inherited: frozenset[str] = PrivateAttr(frozenset())

    @property
    def own(self) -> dict[str, Any]:
        """The settings that are no common keys, as they were given."""
        return dict(self.model_extra or {})

    def inherit(self, keys: frozenset[str]) -> Self:
        """Note that `keys` were given for another thing than is named now: those it does not have fall
        away."""
        self._inherited = keys
        return self

    def inherits(self, key: str) -> bool:
        return key in self._inherited


class JobConfig(Section):
    """What every job has."""

    conditions: ClassVar[tuple[Only, ...]] = ()

    storage: str = Field(
        "./runs", validate_default=True, description="storage root: a folder or any fsspec URI"
    )

    @field_validator("storage")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return storage.absolute(value)


class SeededConfig(JobConfig):
    """A job in which something is random."""

    seed: int = Field(0, ge=0, description="of everything random: the same seed gives the same numbers")
