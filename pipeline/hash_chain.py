"""A log that shows tampering: one JSON file an entry, each naming the digest of the one before.

An entry is created exclusively, which is the whole of the locking: of two writers that saw the same log one
creates the next entry and the other is told. Creating the entry is also the commit.
"""

import datetime
import getpass
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline import storage
from pipeline.errors import InputError

READERS = 16  # requests at once to an object store
SIGNATURE = "signature"  # a field that a log may have: of the entry's digest, None for one that is not signed
SEALS = ("digest", SIGNATURE)


class LogError(InputError):
    """The log on disk is not the log that was written: one line says which entry."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """One entry. A log's own fields are added by a subclass."""

    # of what is read from disk: nothing but these fields, of these types
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    number: int  # from 1
    time: str  # UTC, ISO 8601
    by: str  # user@host
    previous: str  # digest of the entry before, "" for the first
    digest: str = ""  # over every other field, but a signature of it

    def computed_digest(self) -> str:
        return storage.digest_of({key: value for key, value in asdict(self).items() if key not in SEALS})


LinkT = TypeVar("LinkT", bound=Link)


def read(folder: str, kind: type[LinkT], title: str) -> list[LinkT]:
    """The entries of `kind` in `folder`, oldest first; `title` is what people call the log.

    Raises `LogError` when one was changed, removed, put in between or moved. Entries cut off at the end leave
    no gap: who needs to know of them keeps the last digest elsewhere.
    """
    names = [name for name in storage.listing(folder) if name.endswith(".json") and not name.startswith(".")]
    uris = [storage.join(folder, name) for name in names]
    with ThreadPoolExecutor(1 if storage.is_local(folder) else READERS) as pool:
        texts = list(pool.map(storage.read_bytes, uris))
    entries: list[LinkT] = []
    for name, uri, text in zip(names, uris, texts, strict=True):
        entry = _parse(kind, uri, text, title)
        number, previous = len(entries) + 1, entries[-1].digest if entries else ""
        if entry.number != number or _number(name) != number:
            raise LogError(
                f"{uri}: found entry {entry.number}, expected number {number}: an entry was removed or put in"
                " between"
            )
        if entry.digest != entry.computed_digest():
            raise LogError(f"{uri}: entry {number} does not match its own digest: it was edited")
        if entry.previous != previous:
            raise LogError(
                f"{uri}: entry {number} does not follow from entry {number - 1}: one of the two was replaced"
            )
        entries.append(entry)
    return entries


def append(
    uri: str,
    after: Sequence[LinkT],
    kind: type[LinkT],
    sign: Callable[[str], Mapping[str, str]] | None = None,
    **fields: Any,
) -> LinkT | None:
    """Commit the entry that follows `after` at `uri`; None when another writer came first. `sign` makes the
    signature of its digest."""
    draft = kind(
        number=len(after) + 1,
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        by=user(),
        previous=after[-1].digest if after else "",
        **json.loads(json.dumps(fields, allow_nan=False)),  # as they will be read back
    )
    digest = draft.computed_digest()
    entry = kind(**{**asdict(draft), "digest": digest, **({SIGNATURE: dict(sign(digest))} if sign else {})})
    values = {key: value for key, value in asdict(entry).items() if key != SIGNATURE or value is not None}
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    return entry if storage.create(uri, text.encode()) else None


def _parse(kind: type[LinkT], uri: str, text: bytes, title: str) -> LinkT:
    try:
        storage.json_value(text)  # a key that is there twice is none of ours
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        reason = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise LogError(f"{uri}: not an entry of the {title} ({reason}); it was edited or damaged")


def _number(name: str) -> int | None:
    stem = name.removesuffix(".json")
    return int(stem) if stem.isdigit() else None


def user() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):
        return f"unknown@{socket.gethostname()}"
