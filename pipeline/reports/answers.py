"""The deletion requests of a run as the report and the terminal list them."""

from collections.abc import Mapping
from typing import Any

EARLIER, NOW = "forgotten earlier", "forgotten now"


def role_of(label: int, request: Mapping[str, Any]) -> str | None:
    """Whether a class is forgotten now or was forgotten earlier; None for one that is retained."""
    for key, role in (("classes", NOW), ("forgotten_earlier", EARLIER)):
        if label in [int(one) for one in request.get(key) or []]:
            return role
    return None


def answer_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """{id, role, scope, figure, worst, closed} of each request of a result.json, as texts but for `closed`;
    none of a time that did not list them."""
    request = result.get("request") or {}
    return [_row(answer, request) for answer in result.get("requests") or []]


def _row(answer: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    classes, count = answer["classes"], answer["sample_count"]
    roles = {role_of(label, request) for label in classes} | ({NOW} if count else set())
    scope = [f"class{'es' if len(classes) > 1 else ''} {', '.join(map(str, classes))}"] if classes else []
    scope += [f"{count} samples"] if count else []
    shares = answer["forget_fraction"]
    figures = [] if shares is None else [f"{shares['value']:.1%} of {shares['n']} images"]
    figures += [f"AUC {answer['membership_auc']:.3f}"] if answer["membership_auc"] is not None else []
    per_class = {} if shares is None else shares["per_class"]
    worst = max(per_class, key=lambda label: per_class[label]["high"], default=None)
    return {
        "id": answer["id"],
        "role": " and ".join(sorted(role for role in roles if role)) or "not measured",
        "scope": " and ".join(scope),
        "figure": ", ".join(figures) or "not measured",
        "worst": "" if worst is None else f"class {worst}: at most {per_class[worst]['high']:.1%}",
        "closed": answer["closed"],
    }
