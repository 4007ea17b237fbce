"""Keys that configurations had before: refused with what stands in their place; read from what finished runs
left."""

from collections.abc import Collection, Mapping
from typing import Any

from pipeline.config.conditions import has, pop
from pipeline.errors import InputError

RENAMED: dict[str, str] = {  # dotted key before -> dotted key now
    "method.start": "method.label_init",
    "method.push": "method.label_extrapolation",
    "method.hat_weight": "method.uniformity_weight",
    "method.fold": "method.latent_reflection",
    "hat_judge": "uniformity_judge",
    "optim.prime_steps": "optim.moment_warmup_steps",
    "evaluate.guard": "evaluate.retention_floor",
    "evaluate.guard_checks": "evaluate.floor_patience",
    "evaluate.hold_steps": "evaluate.patience_steps",
    "evaluate.battery": "evaluate.attack_suite",
    "evaluate.measures": "evaluate.metrics",
    "evaluate.gold": "evaluate.reference",
    "evaluate.membership_draws": "evaluate.membership_noises",
    "measuring.membership_draws": "measuring.membership_noises",
    "gate.min_hold_steps": "gate.min_patience_steps",
    "gate.min_likeness": "gate.min_exchange_fidelity",
    "battery": "attack_suite",
    "measures": "metrics",
    "gold": "reference",
}
REMOVED: dict[str, str] = {  # dotted key before -> what to do instead
    "stand_in": "python tests/make_stand_ins.py --storage <root> makes tiny weights and a lake",
    "autopilot": "a sweep with method.name in its space finds the method",
}


def refuse_old_keys(values: Mapping[str, Any], known: Collection[str] = ()) -> None:
    """Raise `InputError` for the first key of `values` that has another name now, or none. `known`
    are the keys that this job has, whatever those of another are called."""
    for old, new in RENAMED.items():
        if has(values, old) and not _is_known(old, known):
            raise InputError(f"{old}: is called {new} now; expected --set {new}=...")
    for old, instead in REMOVED.items():
        if has(values, old) and not _is_known(old, known):
            raise InputError(f"{old}: is not there any more; {instead}")


def with_new_keys(values: Mapping[str, Any], known: Collection[str] = ()) -> dict[str, Any]:
    """`values` of a run's config.yaml, whenever it was written, under the names that keys have now."""
    result = _copied(values)
    for old, new in RENAMED.items():
        if has(result, old) and not _is_known(old, known):
            value = pop(result, *old.split("."))
            *parents, leaf = new.split(".")
            section = result
            for parent in parents:
                section = section.setdefault(parent, {})
            section[leaf] = value
    for old in REMOVED:
        if has(result, old) and not _is_known(old, known):
            pop(result, *old.split("."))
    if isinstance(request := result.get("request"), Mapping):
        result["request"] = request_in_todays_words(request)
    return result


def request_in_todays_words(request: Mapping[str, Any]) -> dict[str, Any]:
    """A stored request: with named samples `classes` once said where they are, and no class was forgotten
    whole."""
    if not request.get("sample_ids") or "sample_classes" in request:
        return dict(request)
    return {**request, "classes": [], "sample_classes": request.get("classes") or []}


def _is_known(key: str, known: Collection[str]) -> bool:
    return any(f"{name}.".startswith(f"{key}.") for name in known)


def _copied(value: Any) -> Any:
    return {key: _copied(child) for key, child in value.items()} if isinstance(value, Mapping) else value
