"""How much of the attack suite is tried, and what a run of depth weights has to show under it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator

if TYPE_CHECKING:
    from pipeline.config.unlearn import UnlearnConfig


def _suite(value: Any) -> Any:
    if not isinstance(value, bool) and value != "quick":
        raise ValueError(f"got {value!r}, expected true, false or quick")
    return value


Suite = Annotated[bool | Literal["quick"], BeforeValidator(_suite)]
# `attacks` of a quick suite where nothing else is said: one free embedding, ten times the adversary's rows
QUICK: dict[str, Any] = {
    "only": ["none", "embedding"],
    "samples": 100,
    "retain_samples": 5,
    "embedding_steps": 128,
    "embedding_lr": [0.2],
    "embedding_starts": ["mean"],
}
# At 200 images a share of a half has an interval of 0.10: this passes what is no higher than in the reference
RECALL_EXCESS = 0.10
LEAST_RATIO = 10  # rows of the attacker's search against those of the adversary's, for one embedding


def with_quick_suite(values: Any, section: str | None = None) -> Any:
    """The `values` of a configuration, with the defaults of a quick suite where `attack_suite` (of `section`)
    asks for one."""
    holder = values.get(section) if section and isinstance(values, Mapping) else values
    if not isinstance(holder, Mapping) or holder.get("attack_suite") != "quick":
        return values
    return {**values, "attacks": {**QUICK, **(values.get("attacks") or {})}}


def with_recall_gate(values: Any) -> Any:
    """The `values` of a main job's configuration: depth weights with a reference is attacked, and held to the
    excess over it."""
    if not isinstance(values, Mapping):
        return values
    method, evaluate, gate = (values.get(key) or {} for key in ("method", "evaluate", "gate"))
    if not all(isinstance(section, Mapping) for section in (method, evaluate, gate)):
        return values
    if method.get("depth") != "weights" or not evaluate.get("reference"):
        return values
    return {
        **values,
        "evaluate": {"attack_suite": True, **evaluate},
        "gate": {"max_recall_excess": RECALL_EXCESS, **gate},
    }


def require_attacks(config: "UnlearnConfig") -> None:
    """Raise `ValueError` for a bound on attacks that are not tried, or that search less than ten times as
    long as the adversary that the model was trained against."""
    bound, attacks = config.gate.max_recall_excess, config.attacks
    if bound is None:
        return
    if not config.evaluate.attack_suite:
        raise ValueError(
            f"gate.max_recall_excess: got {bound:g} without attacks; expected evaluate.attack_suite=true"
            " or quick, or gate.max_recall_excess=null"
        )
    if config.method.depth != "weights":
        return
    section, classes = config.redirection, max(1, len(config.request.classes))
    steps = min(section.restart_every, config.optim.max_steps)
    trained = steps * section.rows / section.pool
    searched = attacks.embedding_steps * attacks.embedding_batch / classes
    if searched < LEAST_RATIO * trained:
        least = -(-LEAST_RATIO * trained * classes // attacks.embedding_batch)
        raise ValueError(
            f"attacks.embedding_steps: got {attacks.embedding_steps} of {attacks.embedding_batch} rows,"
            f" {searched:.0f} for an embedding, where the training's adversary has {trained:.0f}; expected"
            f" {LEAST_RATIO} times as many at least, {least:.0f} steps, or gate.max_recall_excess=null"
        )
