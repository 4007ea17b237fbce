"""Which deletion requests a version honours: from its result, in its tags, and back."""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

LISTED = 45  # ids of up to 100 characters in a tag of 5000


def honoured_of(result: Mapping[str, Any]) -> dict[str, list[Any]]:
    """{request_ids, forgotten_classes}: the deletion requests that the weights of a result.json honour, and
    the classes that they were made not to sample, now and earlier, whether or not the gate agreed.

    Requests count that were measured one by one and are closed, and those of the version that the run
    started from where the worst class, of those forgotten earlier too, is within the gate's bound. Of a
    result of a time that noted none: its one request.
    """
    request, answers = result.get("request") or {}, result.get("requests")
    if answers is None:
        own, whole = request.get("id"), [] if request.get("sample_ids") else request.get("classes", [])
        return {"request_ids": [] if own is None else [str(own)], "forgotten_classes": sorted(whole)}
    base = result.get("base_version") or {}
    earlier = base.get("request_ids", []) if _worst_class_passed(result) else []
    answered = {str(answer["id"]) for answer in answers}
    closed = [str(answer["id"]) for answer in answers if answer["closed"]]
    labels = [
        *base.get("forgotten_classes", []),
        *request.get("classes", []),
        *request.get("forgotten_earlier", []),
    ]
    return {
        "request_ids": [*(name for name in earlier if name not in answered), *closed],
        "forgotten_classes": sorted(set(labels)),
    }


def _worst_class_passed(result: Mapping[str, Any]) -> bool:
    checks = [
        check["passed"]
        for check in (result.get("gate") or {}).get("checks") or []
        if check["name"].startswith("forget_fraction")
    ]
    return bool(checks) and all(checks)


def passed(result: Mapping[str, Any]) -> bool:
    return (result.get("gate") or {}).get("passed") is True


def honoured_tags(result: Mapping[str, Any]) -> dict[str, str]:
    """`honoured_of` as tags: JSON lists, cut over several where one is full."""
    return {
        key: text
        for name, values in honoured_of(result).items()
        for key, text in _list_tags(name, values).items()
    }


def honoured(tags: Mapping[str, str]) -> dict[str, list[Any]] | None:
    """`honoured_of`, by a version's tags; None for one of a time that noted none."""
    if "request_ids" not in tags:
        return None
    return {
        name: [
            one
            for key in sorted(tags, key=lambda key: (len(key), key))
            if key.rstrip("0123456789").rstrip("/") == name
            for one in json.loads(tags[key])
        ]
        for name in ("request_ids", "forgotten_classes")
    }


def honoured_by(tags: Mapping[str, str]) -> dict[str, Any]:
    """The requests that a version of any time honours, by its tags, the classes that it has forgotten beyond
    doubt (none where its gate did not pass, or nothing was noted), and those that were asked of it (None
    where nothing was noted)."""
    known = honoured(tags)
    if known is None:
        own = [tags["request_id"]] if "request_id" in tags else []
        return {"request_ids": own, "forgotten_classes": [], "asked_classes": None}
    known["asked_classes"] = known["forgotten_classes"]
    return known | ({} if tags.get("gate") == "passed" else {"forgotten_classes": []})


def _list_tags(name: str, values: Sequence[Any]) -> dict[str, str]:
    """`values` as JSON lists in the tags name, name/2, name/3, ..."""
    parts = [values[start : start + LISTED] for start in range(0, max(1, len(values)), LISTED)]
    return {
        name if number == 1 else f"{name}/{number}": json.dumps(part) for number, part in enumerate(parts, 1)
    }


def registered_at(version: "ModelVersion") -> str:
    """When a version was registered: UTC, ISO 8601."""
    return utc(datetime.datetime.fromtimestamp(version.creation_timestamp / 1000, datetime.UTC))


def utc(time: datetime.datetime) -> str:
    return time.isoformat(timespec="seconds")
