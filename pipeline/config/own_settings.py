"""Settings of one named thing (a method, a source, a metric, an attack): the section that names it keeps
them, the thing's line in its table has the class that checks them."""

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.config.base import OpenSection
from pipeline.config.reading import explain
from pipeline.errors import InputError

SettingsT = TypeVar("SettingsT", bound=BaseModel)
OpenT = TypeVar("OpenT", bound=OpenSection)


def check_own_settings(path: str, values: Mapping[str, Any], kind: type[SettingsT]) -> SettingsT:
    """`values` of section `path` as checked settings of `kind`; `InputError` names the key that is wrong."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(explain(kind, error, path)) from error


def complete(section: OpenT, path: str, table: Mapping[str, type[BaseModel]]) -> OpenT:
    """`section` with the settings of what it names, checked against `table` (name -> class) and complete with
    their defaults."""
    name = getattr(section, section.named)
    if name not in table:
        raise InputError(f"{path}.{section.named}: got {name!r}, expected one of {', '.join(table)}")
    kind = table[name]
    own = {
        key: value
        for key, value in section.own.items()
        if key in kind.model_fields or not section.inherits(key)
    }
    for key in own:
        if key not in kind.model_fields:
            raise InputError(_lacks(section, f"{path}.{key}", name, table))
    common = {key: getattr(section, key) for key in type(section).model_fields}
    return type(section).model_validate(common | dict(check_own_settings(path, own, kind)))


def _lacks(section: OpenSection, key: str, name: str, table: Mapping[str, type[BaseModel]]) -> str:
    path, _, leaf = key.rpartition(".")
    own = list(table[name].model_fields)
    if any(leaf in kind.model_fields for kind in table.values()):
        return f"{key}: {name} does not have it; " + (
            f"its settings are {', '.join(own)}" if own else "it has no settings of its own"
        )
    keys = [*type(section).model_fields, *own]
    near = difflib.get_close_matches(leaf, keys, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown key {key!r}: {hint}valid keys of {path} with {name} are {', '.join(keys)}"
