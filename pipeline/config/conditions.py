"""Keys that do something only while another key has certain values: given where they do nothing, they are
refused."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from pipeline.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Only:
    """`keys` are read only while one of `switches` holds. `needed` follows a switch's name and
    says what it has to be; one text for all of them, or one for each."""

    keys: tuple[str, ...]
    switches: tuple[str, ...]
    needed: str | tuple[str, ...] = "=..."
    holds: Callable[[Any], bool] = bool

    def met(self, config: BaseModel) -> bool:
        return any(self.holds(at(config, switch)) for switch in self.switches)

    @property
    def expected(self) -> list[str]:
        """What would meet it, switch by switch."""
        needed = (self.needed,) * len(self.switches) if isinstance(self.needed, str) else self.needed
        return [switch + text for switch, text in zip(self.switches, needed, strict=True)]


def while_(keys: str, switch: str, *values: Any) -> Only:
    """`keys` (separated by blanks) are read only while `switch` has one of `values`."""
    return Only(
        keys=tuple(keys.split()),
        switches=(switch,),
        needed="="
        + " or ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in values),
        holds=lambda value: value in values,
    )


def unless(keys: str, switch: str) -> Only:
    """`keys` are read only while `switch` is absent."""
    return Only(keys=tuple(keys.split()), switches=(switch,), needed=" absent", holds=lambda value: not value)


def at(config: BaseModel, key: str) -> Any:
    """The value of a dotted key; None below a section that is absent."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part, None)
    return value


def idle(config: BaseModel) -> dict[str, Only]:
    """The keys that do nothing in `config`, each with the condition that is not met."""
    conditions: Sequence[Only] = getattr(config, "conditions", ())
    return {key: only for only in conditions if not only.met(config) for key in only.keys}


def refuse_idle(config: BaseModel, values: Mapping[str, Any], overrides: Collection[str]) -> None:
    """Raise `InputError` for a key of `values` that does nothing.

    `overrides` are the dotted keys among them that were given by --set: one that turns a switch off may leave
    behind what a file says for the case that it is on.
    """
    for key, only in idle(config).items():
        if not has(values, key):
            continue
        if not any(_within(name, key) or _within(key, name) for name in overrides) and any(
            _within(switch, name) for switch in only.switches for name in overrides
        ):
            continue
        switches = " and ".join(f"{switch} is {_shown(at(config, switch))}" for switch in only.switches)
        expected = " or ".join(only.expected)
        raise InputError(
            f"{key}: got it while {switches}, so it does nothing; expected {expected}, or no {key}"
        )


def has(values: Any, key: str) -> bool:
    """Whether nested mappings hold the dotted key."""
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def pop(values: dict[Any, Any], *path: int | str) -> Any:
    """Take what lies at `path` out of nested mappings."""
    *parents, leaf = path
    for parent in parents:
        values = values[parent]
    return values.pop(leaf)


def _within(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _shown(value: Any) -> str:
    if value is None or value == {} or value == []:
        return "absent"
    return str(value).lower() if isinstance(value, bool) else f"{value}"
