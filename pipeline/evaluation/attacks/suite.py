"""The attack suite: what may bring a forgotten class back without anybody asking for it, and what an
attacker would try.

Each attempt changes a copy of the model, or the way images are sampled from it, and the forgotten labels are
sampled and judged again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from pipeline.config.measuring import Attacks
from pipeline.evaluation.confidence import difference
from pipeline.evaluation.context import AFTER, EvalContext
from pipeline.evaluation.metrics.table import evaluate
from pipeline.evaluation.partials import Shard


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One way of an attack (`kind`, in the attacks' table). `about` says in words what is done, `change`
    does it: the context as it is after the attack."""

    name: str
    about: str
    change: Callable[[EvalContext], EvalContext]
    kind: str = ""
    recalls: bool = False  # of the table too: it is tried on the reference as well, where there is one

    def run(self, context: EvalContext, settings: Attacks) -> dict[str, Any]:
        """{forget_fraction, retain_accuracy} afterwards."""
        spec = replace(
            context.spec,
            settings=context.spec.settings.model_copy(
                update={
                    "samples": settings.samples,
                    "retain_samples": settings.retain_samples,
                    "null_samples": 0,
                }
            ),
            earlier=(),
            purpose="battery",
            joint=True,
            cuts=1,
            top=1,
        )
        attacked = self.change(replace(context, base=None, reference=None, real={}, manifolds={}, spec=spec))
        attacked.model.net.eval()
        return evaluate(("forget_fraction", "retain_accuracy"), attacked, Shard())[AFTER]


def state_of(share: Mapping[str, Any] | None, bound: float) -> str:
    """`holds`: the upper 95 % bound stays below. `returns`: the lower one is above. `open`: the samples
    cannot tell. `failed`: the attack could not be carried out, which proves nothing."""
    if share is None:
        return "failed"
    if share["high"] < bound:
        return "holds"
    return "returns" if share["low"] > bound else "open"


def attack_suite_result(
    outcomes: Mapping[str, Mapping[str, Any]],
    attempts: Mapping[str, Attempt],
    bound: float,
    of_reference: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> dict[str, Any]:
    """The `attack_suite` block of result.json. `outcomes[name]` is what an attempt's run gave, or {"error"};
    `of_reference` the same of a model that never saw the class, where there is one. An attack that teaches
    with images of the class has beside its share the `reference`'s, and by how much it is above (`excess`).

    `held`: every attack left the class forgotten beyond doubt. An attack that could not be carried out, or
    that the samples cannot decide, is not one that held.
    """
    lines = []
    for name, attempt in attempts.items():
        outcome = outcomes.get(name) or {"error": "not run"}
        keys = ("forget_fraction", "retain_accuracy", "seconds", "error")
        line: dict[str, Any] = {"name": name, "kind": attempt.kind, "about": attempt.about}
        line |= {key: outcome.get(key) for key in keys}
        if attempt.recalls:
            share, reference = (
                outcome.get("forget_fraction"),
                of_reference.get(name, {}).get("forget_fraction"),
            )
            line["reference"] = reference
            line["excess"] = difference(share, reference) if share and reference else None
        lines.append(line | {"state": state_of(outcome.get("forget_fraction"), bound)})
    return {"bound": bound, "held": all(line["state"] == "holds" for line in lines), "attacks": lines}


def recall_excess(attack_suite: Mapping[str, Any] | None) -> float | None:
    """The largest upper 95 % bound of any attack's excess over the reference; None where none was compared,
    or one could not be carried out."""
    excesses = [line["excess"] for line in (attack_suite or {}).get("attacks", []) if "excess" in line]
    return max(excess["high"] for excess in excesses) if excesses and all(excesses) else None


def retained_mean(line: Mapping[str, Any]) -> float | None:
    """Of an attempt's outcome, those of earlier versions included, which held a share in place of its
    value."""
    mean = (line.get("retain_accuracy") or {}).get("mean")
    return mean["value"] if isinstance(mean, Mapping) else mean
