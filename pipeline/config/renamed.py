"""Keys that configurations had before: refused with what stands in their place; read from what finished runs
left."""

from collections.abc import Mapping
from typing import Any

from pipeline.errors import InputError

RENAMED: dict[str, str] = {}  # dotted key before -> dotted key now
REMOVED: dict[str, str] = {  # dotted key before -> what to do instead
    "autopilot": "a sweep with method.name in its space finds the method",
}


def refuse_old_keys(values: Mapping[str, Any]) -> None:
    """Raise `InputError` for the first key of `values` that has another name now, or none."""
    for old, new in RENAMED.items():
        if _has(values, old):
            raise InputError(f"{old}: is called {new} now; expected --set {new}=...")
    for old, instead in REMOVED.items():
        if _has(values, old):
            raise InputError(f"{old}: is not there any more; {instead}")


def with_new_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of a run's config.yaml, whenever it was written, under the names that keys have now."""
    result = _copied(values)
    for old, new in RENAMED.items():
        if _has(result, old):
            value = _pop(result, old)
            *parents, leaf = new.split(".")
            node = result
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value
    for old in REMOVED:
        if _has(result, old):
            _pop(result, old)
    return result


def _copied(value: Any) -> Any:
    return {key: _copied(child) for key, child in value.items()} if isinstance(value, Mapping) else value


def _has(values: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def _pop(values: dict[str, Any], key: str) -> Any:
    *parents, leaf = key.split(".")
    for parent in parents:
        values = values[parent]
    return values.pop(leaf)
