"""result.json as it is called today, whenever it was written."""

from collections.abc import Mapping
from typing import Any

from pipeline import storage
from pipeline.config.renamed import request_in_todays_words
from pipeline.evaluation.context import AFTER

BLOCKS = {"measures": "metrics", "battery": "attack_suite", "gold": "reference", "kept_step": "best_step"}
METRICS = {"membership_auc": "membership"}
STOPPED = {"guard": "retention_floor"}


def read(uri: str) -> dict[str, Any]:
    """The result, or a block of one, at `uri`. Its digest is taken of what is written there, not of this."""
    return in_todays_words(storage.read_json(uri))


def in_todays_words(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result of any date with the names of today; one of today as it is."""
    today = {BLOCKS.get(name, name): value for name, value in result.items()}
    if today.get("stopped") in STOPPED:
        today["stopped"] = STOPPED[today["stopped"]]
    if metrics := today.get("metrics"):
        today["metrics"] = metrics if AFTER in metrics else _by_side(metrics)
    if "attacks" in (suite := today.get("attack_suite") or {}):
        attacks = [
            {"state" if name == "verdict" else name: value for name, value in line.items()}
            for line in suite["attacks"]
        ]
        today["attack_suite"] = suite | {"attacks": attacks}
    if request := today.get("request"):
        today["request"] = request_in_todays_words(request)
    if gate := today.get("gate"):
        checks = [
            check | {"name": "exchange_fidelity"} if check.get("name") == "likeness" else check
            for check in gate["checks"]
        ]
        today["gate"] = gate | {"checks": checks}
    return today


def _by_side(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{metric: {side: result}} as {side: {metric: result}}."""
    sides: dict[str, dict[str, Any]] = {}
    for name, results in metrics.items():
        of_sides = results if isinstance(results, Mapping) and AFTER in results else {AFTER: results}
        for side, result in of_sides.items():
            sides.setdefault(side, {})[METRICS.get(name, name)] = result
    return sides
