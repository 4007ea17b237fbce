"""The gate before promotion: every bound with what was measured. What was not measured does not pass."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pipeline.config import Gate
from pipeline.evaluation.attacks.relearning import sooner_than_reference
from pipeline.evaluation.attacks.suite import recall_excess, recall_gap
from pipeline.evaluation.metrics.class_shares import drift

NOT_REACHED = ("settled", "held_steps")  # checks whose null is a finding: the run never came to it
JUDGE_BOUND: float = Gate.model_fields[
    "min_judge_accuracy"
].default  # a judge worse than this on held-out images proves nothing
FIDELITY_BOUND = 1 / 3  # an exchange fidelity below this is warned of


def judge_warning(accuracy: float | None) -> str | None:
    """What to say of a judge that is below the bound on held-out images, or was never tried on any; None of a
    good one."""
    if accuracy is None:
        return "the judge was never tried on held-out images: what its predictions are worth is not known"
    if accuracy < JUDGE_BOUND:
        return (
            f"the judge is right on {accuracy:.1%} of held-out images, less than {JUDGE_BOUND:.0%}: its"
            " predictions are not worth much"
        )
    return None


def exchange_fidelity(
    before: Mapping[str, Any], after: Mapping[str, Any], end: Literal["value", "low"] = "value"
) -> float | None:
    """How much what the forgotten labels sample looks like their exchange classes, from the `before` and
    `after` blocks of result.json.

    The smaller of two: the share that the judge calls so, and the density of real images around it, over that
    around what the base samples under the exchange labels. Either alone can be fooled: a judge by stripes,
    and density by one odd image whose ball is huge. `end`: of their values, or of the lower ends of their 95
    % intervals. None where they were not measured, or the base reaches nothing.
    """
    predicted, density = (
        after.get("exchange_fraction"),
        (after.get("exchange_density") or {}).get("forgotten"),
    )
    own = (before.get("exchange_density") or {}).get("own")
    if not (predicted and density and own and own["value"]) or density[end] is None:
        return None
    return min(predicted[end], density[end] / own["value"])


def exchange_fidelity_warning(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """What to say where the forgotten labels sample nothing that looks like their exchange classes."""
    fidelity = exchange_fidelity(before, after)
    if fidelity is None or fidelity >= FIDELITY_BOUND:
        return None
    predicted = after["exchange_fraction"]["value"]
    density, own = after["exchange_density"]["forgotten"]["value"], before["exchange_density"]["own"]["value"]
    return (
        f"what the forgotten labels sample does not look like their exchange classes: {predicted:.1%} is"
        f" predicted so, and real images lie around it with density {density:.2f}, {own:.2f} around the"
        " base's samples under the exchange labels; look at the samples"
    )


def judge_gate(
    gate: Gate,
    outcome: Mapping[str, Any],
    judge_accuracy: float | None,
    forgotten_classes: Sequence[int] = (),
    trained_against: bool = False,
    attack_suite: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The `gate` block of result.json: {passed, checks [{name, value, bound, passed}]}.

    `trained_against`: the judge's own gradient drove the training, which teaches a model to fool it as much
    as to forget. `attack_suite` is that block of result.json.
    """
    before, after = outcome["before"], outcome["after"]
    forgotten = [*_forgotten(gate, after), *_named_samples(gate, before, after)]
    retained = (
        _shares(gate, before, after, forgotten_classes)
        if after.get("class_shares")
        else _accuracy(gate, after["retain_accuracy"])
    )
    checks = [
        *forgotten,
        {
            "name": "settled",
            "value": outcome["settled_step"],
            "bound": None,
            "passed": outcome["settled_step"] is not None,
        },
        _at_least("held_steps", _held(outcome), gate.min_patience_steps),
        *retained,
    ]
    if gate.min_exchange_fidelity is not None:
        checks.append(
            _at_least("exchange_fidelity", exchange_fidelity(before, after), gate.min_exchange_fidelity)
        )
    if gate.min_judge_accuracy is not None:
        checks.append(_at_least("judge_heldout_accuracy", judge_accuracy, gate.min_judge_accuracy))
    if trained_against and not gate.accept_trained_judge:
        checks.append({"name": "judge_trained_against", "value": 1.0, "bound": 0.0, "passed": False})
    if gate.max_recall_excess is not None:
        check = _at_most("recall_excess", recall_excess(attack_suite), gate.max_recall_excess)
        checks.append(check | ({"reason": gap} if (gap := recall_gap(attack_suite)) else {}))
        if (easier := sooner_than_reference(attack_suite)) is not None:
            checks.append(_at_most("sooner_than_reference", easier, 0))
    if gate.max_fid_increase is not None:
        for features, value in after["fid"].items():
            earlier = before["fid"][features]
            increase = None if value is None or earlier is None else value - earlier
            checks.append(_at_most(f"fid_increase/{features}", increase, gate.max_fid_increase))
    return {"passed": all(check["passed"] for check in checks), "checks": checks}


def forgotten_shares(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How often each forgotten class is still sampled, now or earlier, by label; empty where no class was
    measured by itself."""
    return {
        label: share
        for block in ("forget_fraction", "earlier_fraction")
        for label, share in ((metrics.get(block) or {}).get("per_class") or {}).items()
    }


def _forgotten(gate: Gate, after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Classes: all together, the worst one, and what leaks out under labels that never asked for them."""
    checks = []
    if not after.get("membership") or after["forget_fraction"]:
        value = (after["forget_fraction"] or {}).get("value")
        checks.append(_at_most("forget_fraction", value, gate.max_forget_fraction))
    if shares := forgotten_shares(after):
        worst = max(shares, key=lambda label: shares[label]["value"])
        checks.append(
            _at_most("forget_fraction/class", shares[worst]["value"], gate.max_forget_fraction)
            | {"class": worst}
        )
    if leakage := after.get("leakage"):
        for under, bound in (("other_labels", gate.max_leakage), ("null_label", gate.max_null_leakage)):
            if bound is not None:
                checks.append(_at_most(f"leakage/{under}", (leakage[under] or {}).get("value"), bound))
    return checks


def _named_samples(gate: Gate, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The loss attack. Losses far above those of never-seen rows give the samples away as surely as low ones:
    the attack only has to be turned round."""
    attack, bound = after.get("membership"), gate.max_membership_auc
    if not attack:
        return []
    if after["forget_fraction"]:
        # beside whole classes samples are often few, and the area under the curve is then mostly chance: what
        # is refused is an attack that does better beyond doubt
        return [
            _at_most("membership_auc/lower_end", attack["low"], bound),
            _at_most("membership_auc/reversed/lower_end", 1 - attack["high"], bound),
        ]
    memorised = before["membership"]
    checks = [
        {  # without that there was nothing to forget, and the run shows nothing
            "name": "memorised_before",
            "value": memorised["low"],
            "bound": 0.5,
            "passed": memorised["memorised"],
        }
    ]
    return [
        *(checks if gate.require_memorised else []),
        _at_most("membership_auc", attack["auc"], bound),
        _at_most("membership_auc/reversed", 1 - attack["auc"], bound),
    ]


def _accuracy(gate: Gate, retain: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        _at_least("retain_accuracy/mean", retain["mean"], gate.min_retain_accuracy),
        _at_least("retain_accuracy/min", retain["min"], gate.min_class_accuracy)
        | {"class": _worst(retain["per_class"])},
    ]


def _shares(
    gate: Gate, before: Mapping[str, Any], after: Mapping[str, Any], forgotten: Sequence[int]
) -> list[dict[str, Any]]:
    """A model without labels: how far the share of the kept class that moved most is from where it was among
    the kept ones."""
    moved = {
        label: abs(change)
        for label, change in drift(before["class_shares"], after["class_shares"], forgotten).items()
    }
    worst = max(moved, key=lambda label: moved[label])
    return [_at_most("class_share_drift", moved[worst], gate.max_share_drift) | {"class": worst}]


def _held(outcome: Mapping[str, Any]) -> int | None:
    """The steps for which a settled run was seen to stay below the target."""
    settled, steps = outcome["settled_step"], outcome.get("steps")
    return None if settled is None or steps is None else steps - settled


def _at_most(name: str, value: float | None, bound: float) -> dict[str, Any]:
    return {"name": name, "value": value, "bound": bound, "passed": value is not None and value <= bound}


def _at_least(name: str, value: float | None, bound: float) -> dict[str, Any]:
    return {"name": name, "value": value, "bound": bound, "passed": value is not None and value >= bound}


def _worst(per_class: Mapping[str, float]) -> str | None:
    return min(per_class, key=lambda label: per_class[label]) if per_class else None
