"""Classes forgotten now, classes forgotten earlier, retained classes: each is measured as what it is, and
none hides behind the others."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from contexts import FEW, tiny_context

from pipeline.config import Gate
from pipeline.config.request import Answer
from pipeline.evaluation.answers import answered
from pipeline.evaluation.confidence import proportion
from pipeline.evaluation.context import AFTER, EARLIER, RETAINED, UNLABELLED
from pipeline.evaluation.gate import judge_gate
from pipeline.evaluation.metrics.table import evaluate, results
from pipeline.evaluation.partials import Shard
from pipeline.evaluation.sampling import plans
from pipeline.evaluation.stopping_rule import SettleRule

NAMES = ("forget_fraction", "earlier_fraction", "leakage", "exchange_fraction", "retain_accuracy", "fid")


def of_predictions(groups: dict[str, list[tuple[int, int]]], **spec: Any) -> dict[str, Any]:
    """The results of pairs of label and prediction, by group."""
    context = tiny_context(**spec)
    partials = {f"{AFTER}/{name}/predictions": torch.tensor(pairs) for name, pairs in groups.items()}
    names = [name for name in NAMES if name != "fid"]
    return results(names, replace(context.spec, joint=True, top=1), partials, [AFTER])[AFTER]


def test_each_class_is_counted_by_itself() -> None:
    found = of_predictions(
        {
            "forgotten@2": [(1, 1), (1, 2), (1, 2), (3, 3)],
            EARLIER: [(0, 2), (0, 0)],
            RETAINED: [(2, 2), (2, 0), (2, 1), (2, 2)],
            UNLABELLED: [(4, 0), (4, 2)],
        },
        forgotten=(1, 3),
        earlier=(0,),
        exchange={1: (2,), 0: (2,)},
        retained=(2,),
    )
    forgotten = found["forget_fraction"]
    assert (forgotten["value"], forgotten["n"]) == (0.5, 4)
    assert {c: share["value"] for c, share in forgotten["per_class"].items()} == {"1": 1 / 3, "3": 1.0}
    assert forgotten["per_class"]["3"] == proportion(1, 1).to_dict()
    assert found["exchange_fraction"]["per_class"] == {"1": proportion(2, 3).to_dict()}
    earlier = found["earlier_fraction"]
    assert (earlier["value"], earlier["n"]) == (0.5, 2)
    assert earlier["per_class"]["0"] == {**proportion(1, 2).to_dict(), "exchange": proportion(1, 2).to_dict()}
    leakage = found["leakage"]  # of classes forgotten now and of those forgotten earlier
    assert (leakage["other_labels"]["value"], leakage["null_label"]["value"]) == (0.5, 0.5)
    assert set(found["retain_accuracy"]["per_class"]) == {"2"}


@pytest.mark.parametrize("joint", [True, False])
def test_a_class_forgotten_earlier_is_in_no_other_figure(joint: bool) -> None:
    settings = FEW.model_copy(update={"null_samples": 3 if joint else 5})
    changes = {"joint": joint, "settings": settings, "retained": (2, 3), "top": 1}
    context = tiny_context(base=False, earlier=(0,), **changes)
    read: list[tuple[int, ...]] = []

    def rows(labels: Any, split: Any, real: Any = context.rows) -> Any:
        read.append(tuple(labels))
        return real(labels, split)

    found = evaluate(NAMES, replace(context, rows=rows), Shard())[AFTER]
    assert read and all(0 not in labels for labels in read), "no row of it is looked at"
    groups = {name: one for one in plans(context.spec) for name in one.groups}
    sampled = {name: {one.labels[i] for i in one.groups[name]} for name, one in groups.items()}
    assert sampled[EARLIER] == {0} and sampled[RETAINED] == {2, 3} and sampled[UNLABELLED] == {4}
    assert set(found["retain_accuracy"]["per_class"]) == {"2", "3"}
    assert set(found["forget_fraction"]["per_class"]) == {"1"}
    assert found["earlier_fraction"]["n"] == 20, "as many images as the class that is forgotten now"
    alone = evaluate(NAMES, tiny_context(base=False, **changes), Shard())[AFTER]
    for name in ("forget_fraction", "exchange_fraction", "retain_accuracy"):
        assert found[name] == alone[name], "the other figures are as without it"
    assert found["fid"] == pytest.approx(alone["fid"], rel=1e-5), "cut into other blocks"


def outcome(per_class: dict[int, tuple[int, int]], **blocks: Any) -> dict[str, Any]:
    """What a run comes to that sampled each class `hits` of `n` times."""
    hits, n = (sum(part) for part in zip(*per_class.values()))
    shares = {str(c): proportion(*counts).to_dict() for c, counts in per_class.items()}
    kept = {"mean": 1.0, "min": 1.0, "per_class": {"9": 1.0}}
    after = {"forget_fraction": {**proportion(hits, n).to_dict(), "per_class": shares}, "fid": {}}
    after |= {"retain_accuracy": kept} | blocks
    return {"before": {"fid": {}}, "after": after, "settled_step": 4, "steps": 20}


def refused(result: dict[str, Any], **gate: Any) -> list[tuple[str, Any]]:
    checks = judge_gate(Gate(**gate), result, 0.99)["checks"]
    return [(check["name"], check.get("class")) for check in checks if not check["passed"]]


def test_one_of_fifty_classes_that_is_fully_sampled_does_not_pass() -> None:
    """2 % of all images: the pooled share passes a bound of 5 %, the class does not."""
    result = outcome({c: (10 if c == 17 else 0, 10) for c in range(50)})
    assert result["after"]["forget_fraction"]["value"] == 0.02
    assert refused(result) == [("forget_fraction/class", "17")]
    assert refused(outcome(dict.fromkeys(range(50), (0, 10)))) == []


def test_a_class_that_came_back_is_refused() -> None:
    """A later run relearned what an earlier request had forgotten."""
    back = {"per_class": {"1": {**proportion(86, 100).to_dict(), "exchange": None}}}
    assert refused(outcome({3: (0, 500)}, earlier_fraction=back)) == [("forget_fraction/class", "1")]


def test_leakage_is_bounded_under_other_labels_and_where_asked_under_none() -> None:
    leakage = {"other_labels": proportion(6, 100).to_dict(), "null_label": proportion(8, 100).to_dict()}
    result = outcome({1: (0, 500)}, leakage=leakage)
    assert refused(result) == [("leakage/other_labels", None)]
    assert refused(result, max_leakage=0.1) == []
    assert refused(result, max_leakage=0.1, max_null_leakage=0.02) == [("leakage/null_label", None)]
    unmeasured = outcome({1: (0, 500)}, leakage=leakage | {"null_label": None})
    assert refused(unmeasured, max_leakage=0.1, max_null_leakage=0.5) == [("leakage/null_label", None)]


def test_nothing_is_settled_while_something_else_is_above_its_bound() -> None:
    rule = SettleRule(target=0.05, patience_steps=4)
    for step in (2, 4, 6, 8):
        rule.observe(step, proportion(0, 200), others_within=step > 2)
    assert (rule.first_crossing_step, rule.settled_step) == (4, 4)
    rule.observe(10, proportion(0, 200), others_within=False)
    assert rule.settled_step is None


def test_each_request_is_closed_by_its_own_classes() -> None:
    after = outcome({1: (0, 100), 3: (9, 100), 8: (0, 20)})["after"]
    answers = [Answer(id="a", classes=[1]), Answer(id="b", classes=[1, 3]), Answer(id="c", classes=[8])]
    a, b, c = answered(answers, after, Gate())
    assert (a["closed"], a["forget_fraction"]["value"]) == (True, 0.0)
    assert (b["closed"], b["forget_fraction"]["value"]) == (False, 9 / 200)
    assert not c["closed"], "20 images prove nothing: the upper bound is above the gate's"
    earlier = {"earlier_fraction": {"per_class": {"5": {**proportion(0, 100).to_dict(), "exchange": None}}}}
    (d,) = answered([Answer(id="d", classes=[5])], after | earlier, Gate())
    assert d["closed"] and d["forget_fraction"]["per_class"]["5"]["n"] == 100
    (unknown,) = answered([Answer(id="e", classes=[7])], after, Gate())
    assert (unknown["closed"], unknown["forget_fraction"]) == (False, None)


def test_a_request_for_samples_is_closed_by_the_attack_on_them() -> None:
    answer = Answer(id="s", sample_ids_digest="0" * 64, sample_count=4)
    few, many = 0.3, 0.05  # half an interval of few samples says nothing, one of many does
    for auc, half, closed in ((0.5, many, True), (0.7, few, True), (0.7, many, False), (0.3, many, False)):
        membership = {"auc": auc, "low": auc - half, "high": auc + half}
        (found,) = answered([answer], {"forget_fraction": None, "membership": membership}, Gate())
        assert (found["closed"], found["membership_auc"], found["forget_fraction"]) == (closed, auc, None)
    (unmeasured,) = answered([answer], {"forget_fraction": None}, Gate())
    assert (unmeasured["closed"], unmeasured["membership_auc"]) == (False, None)


def test_beside_classes_the_attack_is_held_to_what_few_samples_can_tell() -> None:
    def names(half: float) -> list[str]:
        attack = {"auc": 0.75, "low": 0.75 - half, "high": 0.75 + half}
        before = {"membership": {"low": 0.3, "memorised": False}}
        result = outcome({1: (0, 500)}, membership=attack)
        return [name for name, _ in refused(result | {"before": result["before"] | before})]

    assert names(0.2) == [] and names(0.05) == ["membership_auc/lower_end"]
