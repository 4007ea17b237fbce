"""What every section and every job's configuration is made of."""

import datetime
import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
)

from pipeline import storage
from pipeline.config.conditions import Only

Fraction = Annotated[float, Field(ge=0, le=1)]
Version = Annotated[
    str, BeforeValidator(str), Field(min_length=1, description="alias or number of a registered version")
]
SHA256 = r"^[0-9a-fA-F]{64}$"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


def _as_text(value: Any) -> Any:
    """A ticket number such as 4711 is a text; one that YAML reads as another number than it was written as
    (1.10, yes) is refused."""
    if isinstance(value, bool | float):
        raise ValueError(
            f"which YAML reads as a {type(value).__name__}; expected a text, in quotes: '\"1.10\"'"
        )
    return str(value) if isinstance(value, int | datetime.date) else value


def _lake(value: str) -> str:
    """A lake's name, or a URI that can be opened."""
    if "/" in value:
        storage.absolute(value)
    elif not re.fullmatch(NAME, value):
        raise ValueError(f"got {value!r}, expected a name of letters, digits, ._- (at most 100), or a URI")
    return value


# of what lies in a folder, or in MLflow, under that name
Name = Annotated[str, BeforeValidator(_as_text), Field(pattern=NAME)]
LakeName = Annotated[str, AfterValidator(_lake)]


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of, and the values of a Literal by their type."""
    for part in get_args(annotation) or [annotation]:
        yield from _leaves(part) if get_args(part) else [part if isinstance(part, type) else type(part)]


def _values(value: Any) -> Iterator[Any]:
    """The scalars of a list or mapping, keys included."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for child in value:
            yield from _values(child)
    else:
        yield value


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's `yes` and `on` would count as 1: as a class, a seed, a rate."""
        leaves = set(_leaves(cls.model_fields[str(info.field_name)].annotation))
        if leaves & {int, float} and bool not in leaves and any(isinstance(x, bool) for x in _values(value)):
            raise ValueError("which YAML reads as a truth value; expected a number")
        return value


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
        root = storage.absolute(value)
        storage.require_root(root)
        return root


class SeededConfig(JobConfig):
    """A job in which something is random."""

    seed: int = Field(0, ge=0, description="of everything random: the same seed gives the same numbers")
