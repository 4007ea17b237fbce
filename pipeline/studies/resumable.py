"""A list of runs in plain processes, whose results are appended as they come: what was interrupted goes on;
and their table."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any, Protocol, TypeVar

import yaml

from pipeline import storage
from pipeline.errors import InputError
from pipeline.evaluation import stored_result


class Keyed(Protocol):
    """A run by all that its result depends on."""

    @property
    def key(self) -> str: ...


KeyedT = TypeVar("KeyedT", bound=Keyed)


def results(
    runs: Sequence[KeyedT], run: Callable[[KeyedT], dict[str, Any]], uri: str, processes: int
) -> Iterator[dict[str, Any]]:
    """Run what `uri` (JSON lines) does not hold yet; yields every result, old ones first. `run` puts the
    run's `key` into its result."""
    by_key = stored(uri)
    yield from (by_key[one.key] for one in runs if one.key in by_key)
    missing = [one for one in runs if one.key not in by_key]
    if not missing:
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool, _ended_early():
        for future in as_completed([pool.submit(run, one) for one in missing]):
            result = future.result()
            by_key[result["key"]] = result
            storage.write_text(uri, "".join(json.dumps(r) + "\n" for r in by_key.values()))
            yield result


def stored(uri: str) -> dict[str, dict[str, Any]]:
    """The results that lie at `uri`, by key; none where nothing does."""
    if not storage.exists(uri):
        return {}
    lines = map(json.loads, storage.read_bytes(uri).decode().splitlines())
    return {line["key"]: stored_result.in_todays_words(line) for line in lines}


def flattened(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested mappings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{path}{key}.")
        else:
            flat[f"{path}{key}"] = value
    return flat


def require_same_settings(settings: Mapping[str, Any], uri: str) -> None:
    """Note `settings`, by dotted key, at `uri` for whoever goes on. Raises `InputError` where others were
    noted there before; rows may be added and left out."""
    begun: dict[str, Any] = yaml.safe_load(storage.read_bytes(uri)) if storage.exists(uri) else {}
    keys = [key for key in {**begun, **settings} if key in begun and (key in settings or not _row(key))]
    keys += [key for key in settings if begun and key not in begun and not _row(key)]
    differences = [
        f"{key} {_shown(begun.get(key))} (now {_shown(settings.get(key))})"
        for key in dict.fromkeys(keys)
        if begun.get(key) != settings.get(key)
    ]
    if differences:
        raise InputError(
            f"{uri}: the comparison was begun with other settings: {', '.join(differences)}; expected the"
            " same, or another name"
        )
    storage.write_text(uri, yaml.safe_dump({**begun, **settings}, sort_keys=False))


def _row(key: str) -> bool:
    return key.startswith("rows.")


def _shown(value: Any) -> str:
    return "absent" if value is None else json.dumps(value)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


@contextmanager
def _ended_early() -> Iterator[None]:
    """Whoever leaves early does not wait for runs whose results nobody will keep: a pool whose processes are
    gone gives the rest up."""
    before = set(active_children())
    try:
        yield
    except BaseException:
        for child in set(active_children()) - before:
            child.terminate()
        raise
