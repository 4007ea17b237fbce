"""Which classes a version may not give: what the ledger of deletion requests leaves for programs that serve.

Standard library alone: it is saved inside every registered model, which runs without this project.
"""

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

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


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with a digest over them."""
    return {**values, "seal": _seal(values)}


def read(fetch: Callable[[str], str | None], model_name: str, *, expected: bool) -> list[dict[str, Any]]:
    """The requests to `model_name` whose classes are blocked for versions that do not honour them.

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


def _seal(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
