"""YAML and --set into a checked configuration, and back. An unknown key names the valid ones near it."""

import difflib
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config.base import JobConfig
from pipeline.config.renamed import refuse_old_keys, with_new_keys
from pipeline.errors import InputError
from pipeline.redaction import redacted

ConfigT = TypeVar("ConfigT", bound=JobConfig)
CLASS_PAIR = re.compile(r"([{,]\s*\d+):(?=[\d\[])")  # {1:7}, which YAML reads as the sexagesimal number 67
# no number: YAML would read an octal one, or lose what makes it a digest
DIGITS = re.compile(r"0\d+|\d{30,}")


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file (safe_load). A relative path is looked up from the working directory, then
    from the checkout."""
    candidates = [Path(path), Path(__file__).resolve().parents[2] / path]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise InputError(
            f"--config: got {path!r}, which is no file; expected a YAML file such as"
            " jobs/configs/quickstart.yaml"
        )
    try:
        value = yaml.safe_load(found.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"--config: {path} is not valid YAML ({' '.join(str(error).split())})") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"--config: {path} holds a {type(value).__name__}, expected a mapping of keys")
    return value


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """`values` with each `a.b=c` of `overrides` set; c is read as YAML, so lists and
    mappings can be given."""
    result: dict[str, Any] = dict(values)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"--set: got {override!r}, expected key=value such as optim.lr=0.001")
        try:
            value = (
                text.strip()
                if DIGITS.fullmatch(text.strip())
                else yaml.safe_load(CLASS_PAIR.sub(r"\1: ", text))
            )
        except yaml.YAMLError as error:
            raise InputError(f"--set {key}: got {text!r}, which is not valid YAML") from error
        node = result
        *parents, leaf = key.strip().split(".")
        for parent in parents:
            child = node.get(parent)
            node[parent] = dict(child) if isinstance(child, dict) else {}
            node = node[parent]
        node[leaf] = value
    return result


def parse(kind: type[ConfigT], values: dict[str, Any]) -> ConfigT:
    """`values` as a checked configuration of `kind`; `InputError` names the first key that is wrong."""
    refuse_old_keys(values)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(_explain(kind, error)) from error


def parse_stored(kind: type[ConfigT], values: dict[str, Any]) -> ConfigT:
    """The configuration that a run left, whenever that was: keys that have other names now are read under
    those."""
    return parse(kind, with_new_keys(values))


def load(kind: type[ConfigT], path: str, overrides: list[str] | None = None) -> ConfigT:
    return parse(kind, apply_overrides(read_yaml(path), overrides or []))


def dump(config: BaseModel) -> str:
    """`config` as YAML that `load` reads back, passwords and other secrets left out: what is dumped is kept
    and shown."""
    return yaml.safe_dump(redacted(config.model_dump(mode="json")), sort_keys=False)


def _explain(kind: type[BaseModel], error: ValidationError) -> str:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        fields, section = _fields_at(kind, location[:-1])
        near = difflib.get_close_matches(location[-1], fields, n=3, cutoff=0.5)
        elsewhere = [path for path in _all_keys(kind) if path.rsplit(".", 1)[-1] == location[-1]]
        hint = f"did you mean {' or '.join(elsewhere or near)}? " if near or elsewhere else ""
        return (
            f"unknown key {key!r}: {hint}valid keys{f' of {section}' if section else ''} are"
            f" {', '.join(fields)}{more}"
        )
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return message + more
    return f"{key}: got {first['input']!r}, {message[0].lower() + message[1:]}{more}"


def _fields_at(kind: type[BaseModel], location: list[str]) -> tuple[list[str], str]:
    for part in location:
        annotation = kind.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        kind = annotation
    return list(kind.model_fields), ".".join(location)


def _all_keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in kind.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys += _all_keys(annotation, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys
