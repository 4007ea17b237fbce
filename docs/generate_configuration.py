"""Writes docs/configuration.md from the configuration classes and the tables of named things.

python docs/generate_configuration.py
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.config import (
    attack,
    benchmark,
    compare,
    evaluate,
    export,
    generate,
    ledger,
    prepare,
    pretrain,
    process,
    registry,
    reproduce,
    sweep,
    unlearn,
)
from pipeline.config.base import JobConfig, OpenSection
from pipeline.config.reading import items_of, section_of
from pipeline.data.sources import SOURCES
from pipeline.evaluation.attacks.table import ATTACKS
from pipeline.evaluation.metrics.table import METRICS
from pipeline.unlearning.methods.table import settings_classes

PAGE = Path(__file__).with_name("configuration.md")
JOBS: dict[str, type[JobConfig]] = {
    "prepare_data": prepare.PrepareConfig,
    "pretrain": pretrain.PretrainConfig,
    "unlearn_imagenet": unlearn.UnlearnConfig,
    "evaluate": evaluate.EvaluateConfig,
    "sweep_imagenet": sweep.SweepConfig,
    "ledger": ledger.LedgerConfig,
    "process_requests": process.ProcessConfig,
    "registry": registry.RegistryConfig,
    "generate": generate.GenerateConfig,
    "export": export.ExportConfig,
    "compare_methods": compare.CompareConfig,
    "attack_methods": attack.AttackMethodsConfig,
    "reproduce_paper": reproduce.ReproduceConfig,
    "benchmark": benchmark.BenchmarkConfig,
}
OWN: dict[str, Mapping[str, type[BaseModel]]] = {
    "source": {name: kind.settings for name, kind in SOURCES.items()},
    "method": settings_classes(),
}
UNDER: dict[str, Mapping[str, type[BaseModel]]] = {  # under their names, beside the keys of all
    "attacks": {name: attack.settings for name, attack in ATTACKS.items()},
    "measuring": {name: metric.settings for name, metric in METRICS.items()},
}
HEAD = """# Configuration

Every key of every job. Written by `python docs/generate_configuration.py` from `pipeline/config/`; a test
holds it to that.

A job takes one YAML file and changes to it: `--config FILE`, `--set a.b=c` (repeatable; c is read as YAML).
Quote what the shell would touch: `--set 'request.classes=[3]'`. `--dry-run` checks everything and
writes nothing. A key that a job does not have, or that does nothing, is refused in one line, exit code 2.
`<name>` stands for a name of your own.

Jobs: {jobs}
"""


def page() -> str:
    jobs = ", ".join(f"[{job}](#{job})" for job in JOBS)
    return "\n".join([HEAD.format(jobs=jobs), *(line for job in JOBS for line in section(job, JOBS[job]))])


def section(job: str, config: type[JobConfig]) -> Iterator[str]:
    verb = " <verb>" if hasattr(config, "keys_of_verb") else ""
    yield f"## {job}\n\n`python jobs/{job}.py{verb} --config FILE`\n"
    yield from table(rows(config, dict(notes(config))))
    for name, field in config.model_fields.items():
        kind = section_of(field.annotation)
        if kind is not None and issubclass(kind, OpenSection):
            yield f"Settings of one `{name}.{kind.named}`:\n"
            things: dict[tuple[str, ...], list[str]] = {}
            for thing, own in OWN[name].items():
                for line in rows(own, {}, f"{name}."):
                    things.setdefault(tuple(line), []).append(thing)
            yield from table([f"{line[0]} ({', '.join(named)})", *line[1:]] for line, named in things.items())
    for name in sorted(UNDER.keys() & config.model_fields.keys()):
        lines = [line for thing, own in UNDER[name].items() for line in rows(own, {}, f"{name}.{thing}.")]
        if lines:
            yield from [f"Settings of one name of `{name}`:\n", *table(lines)]


def notes(config: type[JobConfig]) -> Iterator[tuple[str, str]]:
    """What is said behind a key's meaning: the conditions under which it is read, the verbs that read it."""
    expected: dict[str, list[str]] = {}
    for only in config.conditions:
        for key in only.keys:
            texts = [f"`{text.removesuffix('=...')}`" for text in only.expected]
            expected.setdefault(key, []).append(" or ".join(texts))
    yield from ((key, f"; only with {', and '.join(conditions)}") for key, conditions in expected.items())
    verbs: dict[str, tuple[str, ...]] = getattr(config, "keys_of_verb", {})
    for key in {key for keys in verbs.values() for key in keys}:
        yield key, f"; for {', '.join(verb for verb, keys in verbs.items() if key in keys)}"


def table(lines: Any) -> Iterator[str]:
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    yield from (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    yield ""


def rows(
    kind: type[BaseModel], notes: Mapping[str, str], prefix: str = "", note: str = "", given: Any = None
) -> Iterator[list[str]]:
    """A line for every key of `kind`; `given` is the section whose values are the defaults, where there is
    one."""
    for name, field in kind.model_fields.items():
        key, inner = f"{prefix}{field.alias or name}", section_of(field.annotation)
        said = note + notes.get(key, "")
        inside = [one for one in map(section_of, items_of(field.annotation)) if one]
        for below in [inner] if inner else inside:
            values = field.default if isinstance(field.default, BaseModel) else None
            yield from rows(below, notes, f"{key}." if inner else f"{key}.<name>.", said, values)
        if not inner and not inside:
            default = field.default if given is None else getattr(given, name)
            yield [f"`{key}`", type_of(field), shown_value(default), (field.description or "") + said]


def type_of(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        f"{sign} {getattr(bound, name):g}"
        for bound in field.metadata
        for name, sign in signs.items()
        if isinstance(getattr(bound, name, None), int | float)
    ]
    return " ".join([shown(field.annotation), ", ".join(bounds)]).strip()


def shown(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return shown(inner[0])
    if origin in (Union, UnionType):
        return " or ".join(shown(one) for one in inner if one is not type(None))
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in inner)
    if origin in (list, tuple, dict):
        return f"{origin.__name__}[{', '.join(shown(one) for one in inner)}]"
    return {"Any": "any"}.get(getattr(annotation, "__name__", ""), getattr(annotation, "__name__", "any"))


def shown_value(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "absent"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else "empty"


if __name__ == "__main__":
    PAGE.write_text(page())
