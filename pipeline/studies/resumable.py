"""A list of runs in plain processes, whose results are appended as they come: what was interrupted goes on;
and their table."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any, Protocol, TypeVar

from pipeline import storage
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
    by_key = {}
    if storage.exists(uri):
        lines = map(json.loads, storage.read_bytes(uri).decode().splitlines())
        by_key = {line["key"]: stored_result.in_todays_words(line) for line in lines}
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
