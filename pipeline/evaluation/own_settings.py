"""Settings that single metrics and attacks have of their own: kept by the configuration under their names,
checked against the class in their table line."""

from collections.abc import Mapping

from pydantic import BaseModel

from pipeline.config.base import Section
from pipeline.config.own_settings import check_own_settings
from pipeline.errors import InputError


class NoSettings(Section):
    """Of what has none."""


def own_settings(path: str, section: BaseModel, kinds: Mapping[str, type[BaseModel]]) -> dict[str, BaseModel]:
    """The settings of everything in a table (name -> settings class), from what `section` holds by name.
    Raises `InputError` for a name that the table lacks or that has none."""
    given = section.model_extra or {}
    known = [name for name, kind in kinds.items() if kind is not NoSettings]
    for name in given:
        if name not in known:
            valid = ", ".join([*type(section).model_fields, *known])
            raise InputError(f"unknown key {f'{path}.{name}'!r}: valid keys of {path} are {valid}")
    return {
        name: check_own_settings(f"{path}.{name}", given.get(name, {}), kind) for name, kind in kinds.items()
    }
