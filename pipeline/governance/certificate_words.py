"""The first paragraph of a certificate, for people who read no tables: it claims what was measured and no
more."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.reports.evaluation_sections import recall_sentence
from pipeline.reports.text import null_label_sentence, share

UNDECIDED = ("open", "failed", "skipped", "uncompared")
NO_CLAIM = (
    "This says what was measured and nothing else: not that the weights hold nothing of the data, and nothing"
    " about other copies of it."
)


def summary(said: Mapping[str, Any]) -> str:
    """One paragraph of what a certificate's other fields hold."""
    requests, model = said["requests"], said["model"]
    count = "one deletion request" if len(requests) == 1 else f"{len(requests)} deletion requests"
    sentences = [
        f"Version {model['version']} of {model['name']} was made to answer {count}:"
        f" {', '.join(request['id'] for request in requests)}."
    ]
    for request in requests:
        sentences += _of_request(request, said)
    sentences += null_label_sentence({**(said["measures"] or {}), "gate": said["gate"]})
    recalled = recall_sentence((said.get("further_measures") or {}).get("attack_suite"))
    sentences += [*_judge(said), *_attacks(said["attacks"]), *([recalled] if recalled else [])]
    sentences += [*_refused(said), *_data(requests), NO_CLAIM]
    return " ".join(sentences)


def _of_request(request: Mapping[str, Any], said: Mapping[str, Any]) -> list[str]:
    scope, sentences = request["scope"], []
    again = ", which an earlier version answered," if request["earlier"] else ""
    if scope["classes"]:
        labels = scope["classes"]
        name = f"class {labels[0]}" if len(labels) == 1 else f"classes {_listed(labels)}"
        measured = request["forget_fraction"]
        if measured is None:
            sentences.append(f"Whether it still gives {name} ({request['id']}) was not measured.")
        else:
            sentences.append(_asked(name, request["id"], again, measured, _bound(said, "forget_fraction")))
    if scope["samples"]:
        count = scope["samples"]["count"]
        sentences.append(_told_apart(count, request, _bound(said, "membership_auc")))
    if sampled := scope.get("stand_ins"):  # absent from certificates of before
        sentences.append(
            f"The purged rows of {request['id']} were stood in for by {sampled['count']} samples of the base"
            " under its old label."
        )
    return sentences


def _asked(name: str, request_id: str, again: str, measured: Mapping[str, Any], bound: float | None) -> str:
    hits = round(measured["value"] * measured["n"])
    text = (
        f"Asked for {name} ({request_id}){again} it gave images that the judge takes for that class in {hits}"
        f" of {measured['n']} tries, which is at most {share(measured['high'])} with 95\u00a0% confidence"
    )
    worst = max([measured["high"], *(one["high"] for one in (measured.get("per_class") or {}).values())])
    if bound is None:
        return f"{text}."
    if worst < bound:
        return f"{text}: it is no longer sampled when asked for, by the bound of {share(bound)}."
    return f"{text}: by the bound of {share(bound)} that does not show that it is no longer sampled."


def _told_apart(count: int | None, request: Mapping[str, Any], bound: float | None) -> str:
    samples = f"the {count} named samples" if count else "the named samples"
    auc = request["membership_auc"]
    if auc is None:
        return f"Whether {samples} ({request['id']}) can be told from never-seen ones was not measured."
    interval = request.get("membership_interval")  # absent from certificates of before
    with_interval = f"{auc:.2f} ({interval[0]:.2f} to {interval[1]:.2f})" if interval else f"{auc:.2f}"
    text = (
        f"An attack on the loss tells {samples} ({request['id']}) from never-seen images with AUC"
        f" {with_interval}, where 0.5 is chance"
    )
    if bound is None:
        return f"{text}."
    low, high = interval or (auc, auc)
    # either way round: losses too high give samples away as surely as low ones
    if max(high, 1 - low) <= bound:
        return f"{text}: within the bound of {bound:.2f}, the whole interval."
    if max(auc, 1 - auc) <= bound:
        return f"{text}: the interval reaches beyond the bound of {bound:.2f}, so it shows no more than that."
    return f"{text}: not within the bound of {bound:.2f}."


def _judge(said: Mapping[str, Any]) -> list[str]:
    accuracy = _value(said, "judge_heldout_accuracy")
    if accuracy is None:
        return ["How often the judge, a classifier, is right on held-out images was not measured."]
    return [f"The judge is a classifier that is right on {share(accuracy)} of held-out images."]


def _attacks(attacks: Sequence[Mapping[str, Any]]) -> list[str]:
    tried = [one for one in attacks if one["outcome"] in ("holds", "returns", *UNDECIDED)]
    rest = [one["title"] for one in attacks if one["outcome"] == "not tested"]
    if not tried:
        measured = any(one["attack"] == "membership" and one["outcome"] == "measured" for one in attacks)
        none = "No attack but that on the loss was tried" if measured else "No attack was tried"
        return [f"{none}, so whether the weights can be made to give it again is not known."]
    back = sorted({one["title"].lower() for one in tried if one["outcome"] == "returns"})
    unclear = sorted({one["title"].lower() for one in tried if one["outcome"] in UNDECIDED})
    sentences = [f"{len(tried)} attacks were tried"]
    sentences.append(f"it came back under: {_listed(back)}" if back else "it came back under none of them")
    if unclear:
        sentences.append(f"undecided: {_listed(unclear)}")
    if rest:
        sentences.append(f"not tested: {_listed([title.lower() for title in rest])}")
    return ["; ".join(sentences) + "."]


def _refused(said: Mapping[str, Any]) -> list[str]:
    sentences = []
    if said["not_honoured"]:
        sentences.append(f"It does not honour {'; '.join(said['not_honoured'])}.")
    if said["gate_override"]:
        sentences.append(
            f"It was promoted although it was refused; the reason given: {said['gate_override']}."
        )
    return sentences


def _data(requests: Sequence[Mapping[str, Any]]) -> list[str]:
    gone = [request["id"] for request in requests if request["data"]]
    there = [request["id"] for request in requests if not request["data"]]
    sentences = []
    if gone:
        sentences.append(f"The data of {_listed(gone)} was purged from this storage.")
    if there:
        sentences.append(f"The data of {_listed(there)} had not been purged when this was issued.")
    return sentences


def _check(said: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    checks = (said["gate"] or {}).get("checks") or []
    return next((check for check in checks if check["name"].split("/")[0] == name), {})


def _bound(said: Mapping[str, Any], name: str) -> float | None:
    return _check(said, name).get("bound")


def _value(said: Mapping[str, Any], name: str) -> float | None:
    return _check(said, name).get("value")


def _listed(items: Sequence[Any]) -> str:
    texts = [str(item) for item in items]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
