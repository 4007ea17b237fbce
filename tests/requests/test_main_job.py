"""What the processor reads of a run's result and of a version's tags, and what an audit asks."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.config import Gate, parse
from pipeline.config.ledger import LedgerConfig
from pipeline.config.process import ProcessConfig
from pipeline.config.request import Answer
from pipeline.data.lake import lake_uri, read_lake
from pipeline.errors import InputError
from pipeline.evaluation.answers import answered
from pipeline.evaluation.confidence import proportion
from pipeline.requests import ledger, main_job, merge, plan, submit
from pipeline.requests.plan import Plan


@pytest.fixture
def two(root: str, configured: Callable[..., LedgerConfig]) -> Plan:
    """The plan for 1 -> 7 and 3 -> 5."""
    for name, label, exchange in (("r1", 1, 7), ("r3", 3, 5)):
        submit.submit(configured(name, classes=[label], exchange={label: exchange}))
    config = parse(ProcessConfig, {"storage": root})
    requests = merge.of_model(ledger.read(root), config.tracking.model_name)
    rows = plan.rows_of(requests, read_lake(lake_uri(root, "digits")), root)
    return plan.make(config, requests, rows, None)


def result(two: Plan, hits: dict[int, int], **changed: Any) -> dict[str, Any]:
    """result.json of a run after which so many of 200 images of each class are still of it."""
    shares = {str(label): proportion(count, 200).to_dict() for label, count in hits.items()}
    blocks = answered(two.config.request.answers, {"forget_fraction": {"per_class": shares}}, Gate())
    gate = {"passed": True, "checks": [{"name": "settled", "value": 4, "bound": None, "passed": True}]}
    return {"model": {"version": 7}, "requests": blocks, "gate": gate, **changed}


def test_each_request_by_its_own_figures(two: Plan) -> None:
    outcome = main_job.outcome_of(result(two, {1: 0, 3: 12}), two)
    assert outcome.version == 7 and outcome.refusals == ()
    assert outcome.failures == {
        "r3": "class 3 is sampled 6.0% of 200 times, at most 10.2% with 95 % confidence; expected at most"
        " 5.0%"
    }


def test_the_gates_reasons(two: Plan) -> None:
    check = {"name": "retain_accuracy/min", "value": 0.5, "bound": 0.9, "passed": False, "class": 8}
    refused = result(two, {1: 0, 3: 0}, gate={"passed": False, "checks": [check]})
    outcome = main_job.outcome_of(refused, two)
    assert outcome.refusals == ("retain_accuracy/min 0.500 (class 8), bound 0.9",) and not outcome.failures


def test_a_class_that_was_not_measured_is_not_closed(two: Plan) -> None:
    assert main_job.outcome_of(result(two, {1: 0}), two).failures == {"r3": "it was not measured"}


def test_a_result_of_before(two: Plan) -> None:
    with pytest.raises(InputError, match=r"its result says nothing of request r1; .* remove its folder"):
        main_job.outcome_of(result(two, {1: 0, 3: 0}, requests=[]), two)


def test_samples_whose_rows_were_purged_are_not_missed() -> None:
    gone = Answer(id="s2", sample_ids_digest="0" * 64, purged=True)
    unknown = Answer(id="s3", sample_ids_digest="0" * 64)
    assert [block["closed"] for block in answered([gone, unknown], {}, Gate())] == [True, False]


def test_requests_of_a_version() -> None:
    assert main_job.request_ids({"request_ids": '["a", "b"]', "forgotten_classes": "[1]"}) == ("a", "b")
    assert main_job.request_ids({"request_id": "forget-1"}) == ("forget-1",), "of a time before"
    assert main_job.request_ids({}) == ()


def test_an_audit_asks_for_every_class(two: Plan) -> None:
    config = parse(ProcessConfig, {"storage": two.config.storage, "audit": {"samples": 150}})
    asked = main_job.evaluation_config(config, 7, two.union, 11, "/ids.txt")
    assert (asked.version, asked.seed, asked.request.classes) == ("7", 11, [1, 3])
    assert asked.measuring.samples == 300 and asked.request.sample_ids is None
    assert asked.metrics == ["forget_fraction", "leakage"]


def test_images_enough_of_each_class_at_the_end(two: Plan) -> None:
    assert two.config.evaluate.final_samples == 500
    few = parse(
        ProcessConfig, {"storage": two.config.storage, "unlearn": {"evaluate": {"final_samples": 100}}}
    )
    requests = list(two.union.open)
    rows = plan.Rows(ids={}, gone={})
    assert plan.make(few, requests, rows, None).config.evaluate.final_samples == 200
