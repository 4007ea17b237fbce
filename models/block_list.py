"""Which classes a version may not give: what the ledger of deletion requests leaves for programs that serve.

Standard library alone: it is saved inside every registered model, which runs without this project.
"""

import hashlib
import hmac
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

KEY_VARIABLE = (
    "UNLEARN_ID_KEY_FILE"  # the operator's own key file, on every machine that reads or writes here
)
BLOCKED, HEAD = "blocked.json", "head.json"  # of the ledger's folder
TRIES, PAUSE_S = 5, 0.2  # while a writer is between the two files


class UnreadableError(ValueError):
    """The block list cannot be read, or is not the ledger's: which classes are blocked is not known."""


def blocked_classes(
    requests: Iterable[Mapping[str, Any]],
    *,
    request_ids: Collection[str],
    forgotten_classes: Collection[int],
    registered: str,
    asked_classes: Collection[int] | None = None,
) -> dict[int, str]:
    """Class -> the request it is blocked by, for a version that honours the requests `request_ids`, passed
    its gate having forgotten `forgotten_classes`, under whatever request, and was `registered` then (UTC, ISO
    8601). `asked_classes`: all that it was made to forget, whatever its gate said; a request that names
    another class is not the one it honours under that id. None: not noted.

    `requests` are those of the version's model: {id, classes, reopened}, the last when an audit reopened it,
    "" where none did: no version of before honours it, whatever was measured at the time.
    """
    return {
        int(label): str(request["id"])
        for request in requests
        for label in request["classes"]
        if registered < request["reopened"]
        or (
            label not in forgotten_classes
            and (
                request["id"] not in request_ids or (asked_classes is not None and label not in asked_classes)
            )
        )
    }


def sealed(values: Mapping[str, Any], key: bytes | None = None) -> dict[str, Any]:
    """`values` with a digest over them and, with the operator's `key`, first an HMAC: whoever edits the list
    can make the digest again, and not that."""
    keyed = {**values, "keyed_seal": _keyed_seal(values, key)} if key else dict(values)
    return {**keyed, "seal": _seal(keyed)}


def read(
    fetch: Callable[[str], str | None], model_name: str, *, expected: bool, key: bytes | None = None
) -> list[dict[str, Any]]:
    """The requests to `model_name` whose classes are blocked for versions that do not honour them. With the
    operator's `key` the list has to be sealed with it.

    `fetch` gives the text of a file of the ledger's folder, None where there is none. Without a ledger
    nothing is blocked, unless one is `expected`. Raises `UnreadableError`.
    """
    problem = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE_S)
        try:
            head_text, text = fetch(HEAD), fetch(BLOCKED)
            if head_text is None and text is None and not expected:
                return []
            if text is None:
                problem = f"there is no {BLOCKED}"
                continue
            listed = json.loads(text)
            head = {"entries": 0, "digest": ""} if head_text is None else json.loads(head_text)
            if listed.pop("seal", None) != _seal(listed):
                raise UnreadableError(f"{BLOCKED} does not match its seal: it was edited or damaged")
            if key and not _is_keyed(listed, key):
                raise UnreadableError(
                    f"{BLOCKED} is not sealed with the operator's key: it was edited, or written without it"
                )
            older = listed["entries"] < head["entries"]
            if older or (listed["entries"] == head["entries"] and listed["digest"] != head["digest"]):
                problem = f"{BLOCKED} is not of the ledger's last entry"
                continue
            return list(listed["models"].get(model_name, []))
        except UnreadableError:
            raise
        except Exception as error:  # whatever a store raises: the answer is not known
            problem = f"{type(error).__name__}: {error}"
    raise UnreadableError(problem)


def operators_key() -> bytes | None:
    """What the file holds that the environment names as the operator's key; None where it names none."""
    if not (name := os.environ.get(KEY_VARIABLE)):
        return None
    try:
        return Path(name).expanduser().read_bytes().strip()
    except OSError as error:
        raise UnreadableError(f"{KEY_VARIABLE} names {name}, which cannot be read") from error


def _is_keyed(listed: Mapping[str, Any], key: bytes) -> bool:
    values = {name: value for name, value in listed.items() if name != "keyed_seal"}
    return hmac.compare_digest(str(listed.get("keyed_seal")), _keyed_seal(values, key))


def _keyed_seal(values: Mapping[str, Any], key: bytes) -> str:
    return hmac.digest(key, f"block list:{_text(values)}".encode(), "sha256").hex()


def _seal(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(values).encode()).hexdigest()


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
