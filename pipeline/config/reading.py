"""YAML and --set into a checked configuration, and back. An unknown key names the valid ones near it."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from pipeline import storage
from pipeline.config.base import JobConfig, OpenSection
from pipeline.config.conditions import has, idle, pop, refuse_idle
from pipeline.config.renamed import refuse_old_keys, with_new_keys
from pipeline.errors import InputError
from pipeline.redaction import redacted

ConfigT = TypeVar("ConfigT", bound=JobConfig)
CLASS_PAIR = re.compile(r"([{,]\s*\d+):(?=[\d\[])")  # {1:7}, which YAML reads as one text
CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"
FLOW = ("{", "[")  # what a mapping or list of a --set starts with
SECOND_COLON = "mapping values are not allowed here"  # what PyYAML calls `a: b: c`
LARGEST_YAML = 1_000_000  # values; a list of ids in a configuration may be long
DIGITS = re.compile(r"\d{30,}")  # no number but a digest
NUMBERS = {  # as people write them: YAML's own would read 010 as 8, 1:30 as 90 and 1_0 as 10
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9][0-9]*)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"([-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
}


class Loader(yaml.SafeLoader):
    """Safe, numbers as in `NUMBERS`, and no key may be there twice: YAML would take the last one without a
    word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        mapping = super().compose_mapping_node(anchor)
        assert mapping is not None
        lines: dict[tuple[str, str], int] = {}
        for node, _ in mapping.value:
            if isinstance(node, yaml.ScalarNode):
                key, line = (node.tag, node.value), node.start_mark.line + 1
                if key in lines:
                    raise yaml.YAMLError(
                        f"the key {node.value} is there twice, in lines {lines[key]} and {line}; drop one"
                    )
                lines[key] = line
        return mapping


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in NUMBERS.items():
    Loader.add_implicit_resolver(_tag, _pattern, list("-+.0123456789"))


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file (safe_load), by path or URI. A relative path is looked up from the working
    directory, then from the checkout."""
    candidates = [Path(path), Path(__file__).resolve().parents[2] / path]
    file = next((str(candidate) for candidate in candidates if candidate.is_file()), None)
    if file is None and "://" in path and storage.exists(storage.absolute(path)):
        file = storage.absolute(path)
    if file is None:
        raise InputError(
            f"--config: got {path!r}, which is no file; expected a YAML file such as"
            " jobs/configs/quickstart.yaml"
        )
    try:
        value = yaml.load(storage.read_bytes(file), Loader)  # UTF-8 or UTF-16, with or without its mark
        require_nodes(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"--config: {path} is not valid YAML ({storage.yaml_problem(error)})") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"--config: {path} holds a {type(value).__name__}, expected a mapping of keys")
    return value


def require_nodes(value: Any) -> None:
    """Raise `ValueError` for YAML that is far larger than any configuration once its aliases are written out:
    a few lines of them can stand for billions of values."""
    pending, nodes = [value], 0
    while pending:
        node = pending.pop()
        nodes += 1
        if nodes > LARGEST_YAML:
            raise ValueError(f"it holds more than {LARGEST_YAML} values")
        if isinstance(node, dict):
            pending += node.values()
        elif isinstance(node, list):
            pending += node


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`values` with each `a.b=c` of `overrides` set; c is read as YAML, so lists and
    mappings can be given: in brackets. `GDPR: art 17` is a text."""
    result: dict[str, Any] = dict(values)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"--set: got {override!r}, expected key=value such as optim.lr=0.001")
        try:
            value = _value(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            twice = f" ({error})" if "is there twice" in str(error) else ""
            raise InputError(f"--set {key}: got {text!r}, which is not valid YAML{twice}") from error
        node = result
        *parents, leaf = key.strip().split(".")
        for parent in parents:
            child = node.get(parent)
            node[parent] = dict(child) if isinstance(child, dict) else {}
            node = node[parent]
        node[leaf] = value
    return result


def _value(text: str) -> Any:
    """What the text of a `--set` stands for. Raises `YAMLError`, `ValueError` and `RecursionError`."""
    plain = text.strip()
    if DIGITS.fullmatch(plain):
        return plain
    try:
        value = yaml.load(CLASS_PAIR.sub(r"\1: ", text), Loader)
    except yaml.MarkedYAMLError as error:
        if plain[:1] in FLOW or error.problem != SECOND_COLON:
            raise
        return plain
    require_nodes(value)
    return plain if isinstance(value, dict) and plain[:1] not in FLOW else value


def parse(kind: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """`values` as a checked configuration of `kind`; `InputError` names the first key that is wrong."""
    refuse_old_keys(values, all_keys(kind))
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(kind, error)) from error


def parse_given(kind: type[ConfigT], values: Mapping[str, Any], overrides: Sequence[str] = ()) -> ConfigT:
    """What a person wrote: `values` of a file with `--set` texts over them. A key that does nothing is
    refused."""
    changed = apply_overrides(values, overrides)
    config = parse(kind, changed)
    keys = {override.partition("=")[0].strip() for override in overrides}
    refuse_idle(config, changed, keys)
    for name, section in open_sections(config).items():
        # --set names another method than the file: the file's settings of its own method are not meant for it
        if f"{name}.{section.named}" in keys:
            section.inherit(frozenset(key for key in section.own if f"{name}.{key}" not in keys))
    return config


def parse_stored(kind: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """The configuration that a run left, whenever that was: keys that have other names now are read under
    those, keys that are gone are left out."""
    stored = with_new_keys(values, all_keys(kind))
    while True:
        try:
            config = kind.model_validate(stored)
        except ValidationError as error:
            unknown = [problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"]
            if not unknown:
                raise InputError(explain(kind, error)) from error
            for location in unknown:
                pop(stored, *location)
            continue
        for section in open_sections(config).values():
            section.inherit(frozenset(section.own))
        return config


def load(kind: type[ConfigT], path: str, overrides: Sequence[str] = ()) -> ConfigT:
    return parse_given(kind, read_yaml(path), overrides)


def plain(config: BaseModel) -> dict[str, Any]:
    """`config` as plain data that `parse` reads back, without the keys that do nothing."""
    values = config.model_dump(mode="json")
    for key in idle(config):
        if has(values, key):
            pop(values, *key.split("."))
    return values


def dump(config: BaseModel) -> str:
    """`plain` as YAML, passwords and other secrets left out: what is dumped is kept and shown."""
    return yaml.safe_dump(redacted(plain(config)), sort_keys=False)


def open_sections(config: BaseModel) -> dict[str, OpenSection]:
    return {name: section for name, section in config if isinstance(section, OpenSection)}


def explain(kind: type[BaseModel], error: ValidationError, path: str = "") -> str:
    """The first thing that is wrong, in one line; `path` is where the values of `kind` stand in the whole."""
    first, *_ = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    location = [str(part) for part in first["loc"]]
    before = f"{path}." if path else ""
    key = before + ".".join(location)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        fields, section = list(section_at(kind, location[:-1]).model_fields), before + ".".join(location[:-1])
        near = difflib.get_close_matches(location[-1], fields, n=3, cutoff=0.5)
        elsewhere = [before + name for name in all_keys(kind) if name.rsplit(".", 1)[-1] == location[-1]]
        hint = f"did you mean {' or '.join(elsewhere or near)}? " if near or elsewhere else ""
        of = f" of {section.rstrip('.')}" if section else ""
        open_sections = [name for name, field in kind.model_fields.items() if _is_open(field.annotation)]
        own = (
            "".join(f"; those of one {name} stand under {name}" for name in open_sections) if not path else ""
        )
        return f"unknown key {key!r}: {hint}valid keys{of} are {', '.join(fields)}{own}{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        field = section_at(kind, location[:-1]).model_fields.get(location[-1])
        if field is None:  # an entry of a list that has fewer
            return f"{before}{'.'.join(location[:-1])}: got no entry {location[-1]} (they count from 0){more}"
        return f"{key}: got none, expected {field.description or 'a value'}: --set {key}=<value>{more}"
    if not location:
        return message + more
    got = "" if message.startswith("got ") else f"got {first['input']!r}, "
    return f"{key}: {got}{message[0].lower() + message[1:]}{more}"


def _is_open(annotation: Any) -> bool:
    section = section_of(annotation)
    return section is not None and issubclass(section, OpenSection)


def section_at(kind: type[BaseModel], location: Sequence[str]) -> type[BaseModel]:
    """The section that `location` leads to, through names in dictionaries and places in lists."""
    annotation: Any = kind
    for part in location:
        inner = section_of(annotation)
        if inner is not None and part in inner.model_fields:
            kind, annotation = inner, inner.model_fields[part].annotation
        else:
            annotation = next(iter(items_of(annotation)), annotation)
    return section_of(annotation) or kind


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, also where it may be absent; None for values, dictionaries and lists."""
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation if issubclass(annotation, BaseModel) else None
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return next(filter(None, map(section_of, get_args(annotation))), None)
    return None


def items_of(annotation: Any) -> Iterator[Any]:
    """What the values of a dictionary or list may be."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        for one in get_args(annotation):
            yield from items_of(one)
    elif get_origin(annotation) in (dict, list):
        yield get_args(annotation)[-1]


def all_keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key below `kind`; `<name>` stands for those of a dictionary."""
    keys = []
    for name, field in kind.model_fields.items():
        inner, inside = (
            section_of(field.annotation),
            [section for section in map(section_of, items_of(field.annotation)) if section],
        )
        keys += all_keys(inner, f"{prefix}{name}.") if inner else []
        keys += [key for section in inside for key in all_keys(section, f"{prefix}{name}.<name>.")]
        if not inner and not inside:
            keys.append(prefix + name)
    return keys
