"""The words of a report: numbers as people read them, the summary, the state of the gate."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.evaluation.gate import exchange_fidelity_warning

Namer = Callable[[Any], str]
NOT_MEASURED = "not measured"
CHECKS = {
    "forget_fraction": "forgotten class still sampled",
    "forget_fraction/class": "the forgotten class that is sampled most, now or earlier",
    "leakage/other_labels": "forgotten classes under all other labels",
    "leakage/null_label": "forgotten classes under the null label",
    "settled": "stays forgotten",
    "exchange_fidelity": "looks like the exchange class",
    "held_steps": "steps for which it was seen to stay so",
    "retain_accuracy/mean": "retained classes, mean",
    "retain_accuracy/min": "lowest retained class",
    "class_share_drift": "share of the class that moved most, from where it was among the kept ones",
    "memorised_before": "memorised before: the attack's lower bound on the base model",
    "membership_auc": "loss attack on the named samples",
    "membership_auc/reversed": "the same attack turned round: losses too high give samples away too",
    "membership_auc/lower_end": "loss attack on the named samples, lower 95 % end",
    "membership_auc/reversed/lower_end": "the same attack turned round, lower 95 % end",
    "recall_excess": "how much more of it an attacker brings back than out of a model that never saw it",
    "sooner_than_reference": "relearning and inversion that get at it more easily than in such a model",
    "judge_heldout_accuracy": "the judge itself, on held-out images",
    "judge_trained_against": "the judge that measures is the one the model was trained against",
}


def summary(result: Mapping[str, Any], named: Namer) -> str:
    """In plain words: what was asked, whether it is forgotten and stays so, what it cost the rest, the
    gate_state."""
    request, before, after = (result.get(key) or {} for key in ("request", "before", "after"))
    target = bound_of(result, "forget_fraction") or bound_of(result, "membership_auc")
    remaining, was = after.get("forget_fraction") or {}, before.get("forget_fraction") or {}
    sentences = [f"The model was asked to {_asked(request, named)}."]
    if given(remaining.get("value")):
        interval = (
            f" (95\u00a0% interval {share(remaining.get('low'))} to {share(remaining.get('high'))})"
            if given(remaining.get("low"), remaining.get("high"))
            else ""
        )
        count = f" of {remaining['n']} fresh images" if given(remaining.get("n")) else ""
        earlier = f", against {share(was['value'])} before" if given(was.get("value")) else ""
        sentences.append(f"Now {share(remaining['value'])}{count} still show it{interval}{earlier}.")
    elif after.get("membership"):
        sentences.append(_attacked(before.get("membership") or {}, after["membership"]))
    else:
        sentences.append("Whether it still shows was not measured.")
    if warning := exchange_fidelity_warning(before, after):
        sentences.append(f"{warning[0].upper()}{warning[1:]}.")
    if of_earlier := (after.get("earlier_fraction") or {}).get("per_class"):
        label = max(of_earlier, key=lambda label: of_earlier[label]["value"])
        most = share(of_earlier[label]["value"])
        sentences.append(f"Of what was forgotten earlier, {named(label)} is sampled most: {most}.")
    sentences += [*stand_in_sentence(result), *null_label_sentence(result)]
    settled, crossed = result.get("settled_step"), result.get("first_crossing_step")
    under = f"under {share(target)}" if given(target) else "under the target"
    if given(settled):
        sentences.append(f"It stayed {under} at every check from step {settled} on.")
    elif given(crossed):
        sentences.append(
            f"It first came {under} at step {crossed} but did not stay there: it has not settled."
        )
    elif given(remaining.get("value")):
        sentences.append(f"It never came {under}.")
    mean, mean_before = ((side.get("retain_accuracy") or {}).get("mean") for side in (after, before))
    lowest = (after.get("retain_accuracy") or {}).get("min")
    if given(mean):
        change = (
            f"{share(mean_before)} before and {share(mean)} now"
            if given(mean_before)
            else f"{share(mean)} now"
        )
        worst = f", {share(lowest)} for the lowest class" if given(lowest) else ""
        whom = "Every class" if after.get("membership") and not remaining else "Every other class"
        sentences.append(f"{whom} together: {change} predicted right{worst}.")
    elif after.get("class_shares"):
        sentences.append(_mixture(result, after["class_shares"], named))
    else:
        sentences.append("What it cost the other classes was not measured.")
    return " ".join([*sentences, gate_state(result)["sentence"]])


def stand_in_sentence(result: Mapping[str, Any]) -> list[str]:
    """That samples were read in the place of purged rows, in a run that did; else nothing."""
    if not (facts := result.get("stand_ins")):
        return []
    samples, recognised = facts["samples"], facts["recognised"]
    count = sum(samples.values())
    of = share(sum(recognised[label] * n for label, n in samples.items()) / count)
    labels = f"class{'es' if len(samples) > 1 else ''} {', '.join(samples)}"
    return [
        f"The purged rows of {labels} were stood in for by {count} samples of the base under"
        f" {'their old labels' if len(samples) > 1 else 'its old label'}; the judge takes {of} of these for"
        " the class."
    ]


def null_label_sentence(result: Mapping[str, Any]) -> list[str]:
    """How often what was forgotten is sampled where no class is asked for; nothing where that was not
    measured."""
    before, after = (
        ((result.get(side) or {}).get("leakage") or {}).get("null_label") for side in ("before", "after")
    )
    if not after:
        return []
    bound = bound_of(result, "leakage/null_label")
    held = "no bound is set on that" if bound is None else f"the bound is {share(bound)}"
    was = f", against {share(before['value'])} before" if before else ""
    return [
        f"Under the null label, which asks for no class, {share(after['value'])} of {after['n']} images are"
        f" of a forgotten class (at most {share(after['high'])} with 95\u00a0% confidence){was}; {held}."
    ]


def _mixture(result: Mapping[str, Any], shares: Mapping[str, Any], named: Namer) -> str:
    """What a model without labels samples: the chance share, and how far the kept classes have moved among
    themselves."""
    chance = (
        f"The model samples without labels; spread evenly, a class would be {share(shares['chance'])} of its"
        f" {shares['n']} samples."
    )
    checks = (result.get("gate") or {}).get("checks") or []
    moved = next(
        (check for check in checks if check["name"] == "class_share_drift" and given(check.get("value"))),
        None,
    )
    return chance + (
        f" The kept class that moved most, {named(moved['class'])}, did so by {100 * moved['value']:.1f}"
        " points."
        if moved
        else ""
    )


def _attacked(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What the loss attack says of named samples."""
    if was and not was["memorised"]:
        return (
            "The base model never memorised them: a loss attack tells them from never-seen images no better"
            f" than chance (AUC {was['auc']:.2f}, {was['low']:.2f} to {was['high']:.2f}), so there was"
            " nothing to forget and nothing is claimed."
        )
    earlier = f", against {was['auc']:.2f} before" if was else ""
    return (
        f"A loss attack now tells them from never-seen images with AUC {now['auc']:.2f} "
        f"({now['low']:.2f} to {now['high']:.2f}, chance is 0.5){earlier}."
    )


def share(value: Any) -> str:
    """A fraction as per cent with as many digits as it needs near 0 and 1."""
    if not given(value):
        return NOT_MEASURED
    percent = 100 * float(value)
    digits = 0 if abs(percent - round(percent)) < 1e-9 else 2 if percent < 0.1 or percent > 99.9 else 1
    return f"{percent:.{digits}f}\u00a0%"


def number(value: Any) -> str:
    if value is None:
        return NOT_MEASURED
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def seconds(value: Any) -> str:
    if not given(value):
        return NOT_MEASURED
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def given(*values: Any) -> bool:
    """Whether every value was measured."""
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        for value in values
    )


def namer(class_names: Sequence[str] | None) -> Namer:
    def named(label: Any) -> str:
        index = int(label)
        name = class_names[index] if class_names and 0 <= index < len(class_names) else str(index)
        return str(index) if name == str(index) else f"{index} ({name})"

    return named


def exchange_of(request: Mapping[str, Any]) -> dict[int, list[int]]:
    """The exchange classes of each forgotten class; a mixture has several."""
    given_ = (request.get("exchange") or {}).items()
    return {
        int(key): [int(one) for one in (value if isinstance(value, list) else [value])]
        for key, value in given_
    }


def either(labels: Sequence[int], named: Namer) -> str:
    return " or ".join(named(label) for label in labels)


def _asked(request: Mapping[str, Any], named: Namer) -> str:
    classes, exchange = request.get("classes") or [], exchange_of(request)
    if not classes:
        return "forget the named samples"
    names = ", ".join(named(label) for label in classes)
    pairs = [
        f"{either(exchange[int(label)], named)} in place of {named(label)}"
        for label in classes
        if int(label) in exchange
    ]
    return f"forget class{'es' if len(classes) > 1 else ''} {names}" + (
        f" and to sample {', '.join(pairs)}" if pairs else ""
    )


def title_of(request: Mapping[str, Any], named: Namer) -> str:
    classes, exchange = request.get("classes") or [], exchange_of(request)
    if not classes:
        return "Forgetting samples"
    if len(classes) == 1 and int(classes[0]) in exchange:
        return f"Forgetting {named(classes[0])}, sampling {either(exchange[int(classes[0])], named)} instead"
    return (
        "Forgetting"
        f" {', '.join(named(label) for label in classes[:4])}{' and more' if len(classes) > 4 else ''}"
    )


def gate_state(result: Mapping[str, Any]) -> dict[str, str]:
    gate, model = result.get("gate") or {}, result.get("model") or {}
    failed = [check_title(check) for check in gate.get("checks") or [] if check.get("passed") is not True]
    version = (
        f"{model.get('name')} version {model.get('version')}" if model.get("version") is not None else ""
    )
    at = (
        f"{version} is registered{' as ' + str(model['alias']) if model.get('alias') else ''}"
        if version
        else "nothing is registered"
    )
    if gate.get("passed") is True:
        return {"state": "good", "text": "Gate passed", "sentence": f"The gate passed it; {at}."}
    if gate.get("passed") is False:
        why = f" ({'; '.join(failed)})" if failed else ""
        return {"state": "bad", "text": "Gate refused", "sentence": f"The gate refused it{why}; {at}."}
    return {"state": "open", "text": "Gate not decided", "sentence": f"The gate has not decided; {at}."}


def check_title(check: Mapping[str, Any]) -> str:
    name = str(check["name"])
    title = CHECKS.get(name, name.replace("/", ", ").replace("_", " "))
    return f"{title}, class {check['class']}" if check.get("class") is not None else title


def bound_of(result: Mapping[str, Any], name: str) -> float | None:
    """The bound of the gate's check `name`."""
    checks = (result.get("gate") or {}).get("checks") or []
    return next(
        (float(check["bound"]) for check in checks if check["name"] == name and given(check.get("bound"))),
        None,
    )


def selected(selection: Mapping[str, Any] | None) -> str:
    """What is said of a model that a sweep chose; nothing of any other."""
    if not selection:
        return ""
    others = selection["verified_before_it"]
    return (
        f"Chosen by sweep {selection['sweep']} as trial {selection['trial']} of {selection['of']}. The best"
        " of many is in part the luckiest, so everything before and after on this page was measured again on"
        f" a seed that no trial saw ({selection['seed_verified']})"
        + (f"; {others} better placed trial{'s' * (others > 1)} did not hold on theirs." if others else ".")
    )
