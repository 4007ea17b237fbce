"""The attack suite: what may bring a forgotten class back without anybody asking for it, and what an
attacker would try.

Each attempt changes a copy of the model, or the way images are sampled from it, and the forgotten labels are
sampled and judged again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from pipeline.config.measuring import Attacks
from pipeline.evaluation.confidence import difference
from pipeline.evaluation.context import AFTER, EvalContext
from pipeline.evaluation.metrics.forget_fraction import forget_fraction
from pipeline.evaluation.metrics.retain_accuracy import retain_accuracy
from pipeline.evaluation.partials import Shard
from pipeline.evaluation.rows import NoImagesError, few_images
from pipeline.evaluation.sampling import sample_images
from pipeline.evaluation.second_judge import SECOND, Predictions, collect_second

Outcome = Mapping[str, Any]
KEYS = ("forget_fraction", "retain_accuracy", "seconds", "error")
# of the judges of one attempt, what one says counts before what the next says
STATES = ("returns", "open", "holds")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One way of an attack (`kind`, in the attacks' table). `about` says in words what is done, `change`
    does it: the context as it is after the attack. `budget` is what the attacker spends: `images` of each
    class, and of the search its `steps`, `rows` of all of them and learning `rates`."""

    name: str
    about: str
    change: Callable[[EvalContext], EvalContext] = lambda context: context
    kind: str = ""
    recalls: bool = False  # of the table too: it is tried on the reference as well, where there is one
    budget: Mapping[str, Any] = field(default_factory=dict)

    def run(self, context: EvalContext, settings: Attacks) -> dict[str, Any]:
        """What came of it, as plain data; {error, skipped} where the attacker has no images."""
        try:
            images = self._images(context)
            return self.measured(alone(context, settings), settings) | images
        except NoImagesError as error:
            return {"error": str(error), "skipped": True}

    def _images(self, context: EvalContext) -> dict[str, int]:
        """How many images of a class the attacker really has, of the class that has the fewest."""
        if "images" not in self.budget:
            return {}
        labels = few_images(context, self.budget["images"]).y.tolist()
        return {"images": min(labels.count(label) for label in context.spec.forgotten)}

    def measured(self, context: EvalContext, settings: Attacks) -> dict[str, Any]:
        """{forget_fraction, retain_accuracy} afterwards, and by the second judge {second}."""
        attacked = self.change(context)
        attacked.model.net.eval()
        return shares(attacked)

    def compared(self, outcome: Outcome, reference: Outcome | None, bound: float) -> dict[str, Any]:
        """What its line says beside the outcome: its `state`, and, where it was tried on a model that never
        saw the class too, how much more of it came back here (`excess`), by either judge."""
        share, second = outcome.get("forget_fraction"), outcome.get("second")
        line: dict[str, Any] = {
            "state": worse(state_of(share, bound), state_of(second, bound) if second else None)
        }
        if self.recalls:
            line |= _beside(share, (reference or {}).get("forget_fraction"))
        if second:
            theirs = _beside(second, (reference or {}).get("second")) if self.recalls else {}
            line["second"] = {"forget_fraction": second, **theirs}
        return line


def alone(context: EvalContext, settings: Attacks) -> EvalContext:
    """The model by itself, and as much sampled of it as an attack's outcome takes."""
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
    return replace(context, base=None, reference=None, real={}, manifolds={}, spec=spec)


def shares(context: EvalContext) -> dict[str, Any]:
    """{forget_fraction, retain_accuracy} of the model, and {second}, the forget fraction by the second judge
    on the same images."""
    spec, second = context.spec, context.second
    spaces = {} if second is None else {SECOND: Predictions(second)}
    partials = sample_images(
        replace(context, spaces=spaces), Shard(), () if second is None else (collect_second,)
    )
    outcome = {
        "forget_fraction": forget_fraction(spec, partials, AFTER),
        "retain_accuracy": retain_accuracy(spec, partials, AFTER),
    }
    if second is not None:
        group = f"{AFTER}/{spec.forgotten_group}"
        theirs = {**partials, f"{group}/predictions": partials[f"{group}/{SECOND}"]}
        outcome["second"] = forget_fraction(spec, theirs, AFTER)
    return outcome


def _beside(share: Outcome | None, reference: Outcome | None) -> dict[str, Any]:
    return {
        "reference": reference,
        "excess": difference(share, reference) if share and reference else None,
    }


def state_of(share: Outcome | None, bound: float) -> str:
    """`holds`: the upper 95 % bound stays below. `returns`: the lower one is above. `open`: the samples
    cannot tell. `failed`: the attack could not be carried out, which proves nothing."""
    if share is None:
        return "failed"
    if share["high"] < bound:
        return "holds"
    return "returns" if share["low"] > bound else "open"


def worse(*states: str | None) -> str:
    """Of what several judges say, that which counts: a class that one of them sees has come back."""
    given = [state for state in states if state is not None]
    return min(given, key=lambda state: STATES.index(state) if state in STATES else -1)


def attack_suite_result(
    outcomes: Mapping[str, Outcome],
    attempts: Mapping[str, Attempt],
    bound: float,
    of_reference: Mapping[str, Outcome] = MappingProxyType({}),
    second_judge: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The `attack_suite` block of result.json. `outcomes[name]` is what an attempt's run gave, or {"error"};
    `of_reference` the same of a model that never saw the class, where there is one. An attack that teaches
    with images of the class has beside its share the `reference`'s, and by how much it is above (`excess`).

    `held`: every attack left the class forgotten beyond doubt. An attack that could not be carried out, that
    the samples cannot decide, or that says nothing without a reference is not one that held.
    """
    lines = []
    for name, attempt in attempts.items():
        outcome = outcomes.get(name) or {"error": "not run"}
        line: dict[str, Any] = {"name": name, "kind": attempt.kind, "about": attempt.about}
        line |= {key: outcome.get(key) for key in KEYS}
        if attempt.budget:
            images = {"images": outcome["images"]} if "images" in outcome else {}
            line["budget"] = {**attempt.budget, **images}
        line |= attempt.compared(outcome, of_reference.get(name), bound)
        if outcome.get("skipped"):
            line["state"] = "skipped"
        lines.append(line)
    result = {"bound": bound, "held": all(line["state"] == "holds" for line in lines), "attacks": lines}
    return result if second_judge is None else result | {"second_judge": dict(second_judge)}


def recall_excess(attack_suite: Mapping[str, Any] | None) -> float | None:
    """The largest upper 95 % bound of the excess over the reference, by either judge; None where nothing was
    compared, or one attack could not be carried out.

    Of one kind of attack an attacker keeps the way that worked, on either model: the best of it here stands
    against the best of it out of the reference, not each start against the same start.
    """
    recalling = [line for line in (attack_suite or {}).get("attacks", []) if "excess" in line]
    judged = [part for line in recalling for part in (line, line.get("second") or {}) if "excess" in part]
    if not judged or not all(part["excess"] for part in judged):
        return None
    excesses = []
    for kind in dict.fromkeys(line["kind"] for line in recalling):
        of_kind = [line for line in recalling if line["kind"] == kind]
        seconds = [line["second"] for line in of_kind if line.get("second")]
        excesses += [
            difference(most(lines, "forget_fraction"), most(lines, "reference"))
            for lines in (of_kind, seconds)
            if lines
        ]
    return max(excess["high"] for excess in excesses)


def recall_gap(attack_suite: Mapping[str, Any] | None) -> str | None:
    """Why `recall_excess` is not known, None where it is."""
    if recall_excess(attack_suite) is not None:
        return None
    recalling = [line for line in (attack_suite or {}).get("attacks", []) if "excess" in line]
    if not recalling:
        return "no attack with images of the class was tried"
    if errors := [line["error"] for line in recalling if line["error"]]:
        return str(errors[0])
    return "an attack could not be carried out on the reference, or there is none"


def strongest(attack_suite: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Of the attacks that end in a share, what the best one brings back out of this model (`here`) and the
    best one out of a model that never saw the class (`reference`, None: there is none), by the judge that
    sees the larger gap; and the most images that any had. None where no such attack could be carried out."""
    lines = [
        line
        for line in (attack_suite or {}).get("attacks", [])
        if "excess" in line and line.get("forget_fraction")
    ]
    if not lines:
        return None
    by_judge = [lines, [line["second"] for line in lines if line.get("second")]]
    pairs = [
        (most(judged, "forget_fraction"), most(judged, "reference"))
        for judged in by_judge
        if most(judged, "forget_fraction")
    ]
    here, reference = max(pairs, key=lambda pair: pair[0]["value"] - (pair[1] or {"value": 0.0})["value"])
    images = [count for line in lines if (count := (line.get("budget") or {}).get("images"))]
    return {
        "images": max(images) if images else None,
        "attempts": len(lines),
        "here": here,
        "reference": reference,
    }


def most(judged: Sequence[Mapping[str, Any]], key: str) -> Any:
    """The largest share under `key`; None where there is none."""
    given = [line[key] for line in judged if line.get(key)]
    return max(given, key=lambda share: share["value"]) if given else None


def by_name(attack_suite: Mapping[str, Any]) -> dict[str, Any]:
    """The attacks that ended in a share, as the `after` block of result.json has them: {name: {value, n, low,
    high}}, with `reference`, `excess` and `budget` where there are any."""
    return {
        line["name"]: {key: line["forget_fraction"][key] for key in ("value", "n", "low", "high")}
        | {key: line[key] for key in ("reference", "excess", "budget") if line.get(key)}
        for line in attack_suite["attacks"]
        if line["forget_fraction"]
    }


def record_of(attack_suite: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The numbers of the block as a record for tracking: attack/<name> and what it is compared with."""
    record: dict[str, Any] = {"kind": "attack_suite", "step": step}
    for line in attack_suite["attacks"]:
        name = f"attack/{line['name']}"
        for judge, judged in (("", line), ("/second_judge", line.get("second") or {})):
            for key, tail in (("forget_fraction", ""), ("reference", "/reference"), ("excess", "/excess")):
                if judged.get(key):
                    record[f"{name}{judge}{tail}"] = judged[key]["value"]
        if steps := line.get("relearned"):
            record[f"{name}/steps"] = steps["steps"]
        if loss := line.get("inversion"):
            record[f"{name}/loss"] = loss["loss"]
    return record | {"attack/recall_excess": recall_excess(attack_suite)}


def retained_mean(line: Mapping[str, Any]) -> float | None:
    """Of an attempt's outcome, those of earlier versions included, which held a share in place of its
    value."""
    mean = (line.get("retain_accuracy") or {}).get("mean")
    return mean["value"] if isinstance(mean, Mapping) else mean
