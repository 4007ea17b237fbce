"""A later run on what an earlier one left: a class that was forgotten is read nowhere, measured everywhere,
and known from the version the run starts from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.config import Tracking, UnlearnConfig, load
from pipeline.errors import InputError
from pipeline.evaluation.gate import judge_gate
from pipeline.reports.answers import answer_rows
from pipeline.reports.run_report import render_report
from pipeline.reports.terminal import summary
from pipeline.runs import local, preflight, registered

ROOT = Path(__file__).resolve().parents[2]
QUICK = str(ROOT / "jobs/configs/quickstart.yaml")
MODEL = "dit-digits-unlearned"
FEW = [
    "evaluate.samples=20",
    "evaluate.retain_samples=1",
    "evaluate.sampler_steps=1",
    "evaluate.final_samples=100",
    "evaluate.final_retain_samples=1",
    "evaluate.final_null_samples=10",
    "evaluate.final_sampler_steps=1",
    "evaluate.membership_noises=1",
    "optim.max_steps=2",
    "train.workers=1",
]
LATER = ["request.classes=[3]", "request.exchange={3: 5, 1: 7}", "request.forgotten_earlier=[1]"]


def config_of(root: str, run_id: str, *more: str) -> UnlearnConfig:
    few = FEW if any("sample_ids" in one for one in more) else [one for one in FEW if "membership" not in one]
    return load(UnlearnConfig, QUICK, [f"storage={root}", f"run_id={run_id}", *few, *more])


@pytest.fixture(scope="module")
def first(root: str) -> local.LocalRun:
    """A run of request r1, which forgets class 1, registered as version 1."""
    from pipeline.tracking.mlflow_runs import Tracker
    from pipeline.tracking.registry import register

    run = local.unlearn(config_of(root, "first", "request.id=r1"))
    with Tracker(tracking=Tracking(model_name=MODEL), storage_root=root, run_id="first") as tracker:
        folder = storage.join(run.uri, "model")
        assert register(tracker, folder=folder, image_shape=(8, 8, 1), result=run.result) == 1
    return run


def test_a_class_forgotten_earlier_is_in_no_stream_and_measured_by_itself(root: str) -> None:
    run = local.unlearn(config_of(root, "later", *LATER))
    result, after = run.result, run.result["after"]
    partition, inputs = local.open_run(preflight.check(config_of(root, "again", *LATER)))
    assert 1 not in partition.manifest.retain_labels and 1 not in inputs.subject.spec.retained
    batches = [batch for _, batch in zip(range(2), inputs.streams.retain(0))]
    assert batches and all(1 not in batch.y.tolist() for batch in batches)
    assert set(inputs.streams.forget.take(0, 64, 8, 0, 1).y.tolist()) == {3}
    assert set(after["earlier_fraction"]["per_class"]) == {"1"} and after["earlier_fraction"]["n"] == 100
    assert set(after["retain_accuracy"]["per_class"]) == set("0245678" + "9")
    checks = {check["name"]: check for check in result["gate"]["checks"]}
    assert {"forget_fraction", "forget_fraction/class", "leakage/other_labels"} <= checks.keys()
    shares = {**after["forget_fraction"]["per_class"], **after["earlier_fraction"]["per_class"]}
    assert checks["forget_fraction/class"]["value"] == max(share["value"] for share in shares.values())
    assert after["leakage"]["null_label"]["n"] == 10 and "leakage/null_label" not in checks
    assert [answer["classes"] for answer in result["requests"]] == [[3]]
    published = result | {"model": {"name": MODEL, "version": 2, "alias": "candidate"}}
    page = render_report(published, [], {}, "", class_names=None)
    assert "forgotten earlier" in page and "Of what was forgotten earlier, 1 is sampled most" in page
    assert f"request {result['request']['id']}, forgotten now: class 3" in summary(published, "report.html")


def test_a_later_run_that_brings_a_class_back_fails_its_gate(root: str) -> None:
    """What the run measured, as if it had relearned the class that an earlier request had forgotten."""
    prepared = preflight.check(config_of(root, "again", *LATER))
    result = local.unlearn(config_of(root, "later", *LATER)).result
    back = {"value": 0.86, "n": 100, "low": 0.78, "high": 0.92}
    # what two steps leave is what the machine says
    now = {"value": 0.3, "n": 100, "low": 0.22, "high": 0.4}
    after = result["after"] | {
        "forget_fraction": now | {"per_class": {"3": now}},
        "earlier_fraction": {**back, "per_class": {"1": back | {"exchange": None}}},
    }
    gate = judge_gate(prepared.config.gate, result | {"after": after}, 0.99)
    failed = {check["name"]: check.get("class") for check in gate["checks"] if not check["passed"]}
    assert not gate["passed"] and failed["forget_fraction/class"] == "1"


def test_classes_and_samples_are_forgotten_in_one_run(root: str, tmp_path: Path) -> None:
    lake = preflight.check(config_of(root, "look")).lake
    (tmp_path / "ids.txt").write_text("\n".join(list(lake.read([2]).sample_id)[:5]))
    answers = (
        "request.answers=[{id: a, classes: [1]},"
        f" {{id: b, sample_count: 5, sample_ids_digest: {'ab' * 32}}}]"
    )
    named = [f"request.sample_ids={tmp_path}/ids.txt", "request.sample_classes=[2]", answers]
    result = local.unlearn(config_of(root, "both", *named)).result
    after = result["after"]
    assert (
        set(after["forget_fraction"]["per_class"]) == {"1"} and "2" in after["retain_accuracy"]["per_class"]
    )
    assert after["membership"]["n"] == 5, "the attack looks at the named samples alone"
    checks = {check["name"] for check in result["gate"]["checks"]}
    assert {"forget_fraction", "membership_auc/lower_end", "membership_auc/reversed/lower_end"} <= checks
    assert "memorised_before" not in checks, "the classes were there to forget, whatever the samples were"
    a, b = result["requests"]
    assert (a["membership_auc"], b["forget_fraction"]) == (None, None)
    assert b["membership_auc"] == after["membership"]["auc"]
    assert [row["scope"] for row in answer_rows(result)] == ["class 1", "5 samples"]


@pytest.mark.parametrize("text", [f"models:/{MODEL}@candidate", f"models:/{MODEL}/1", f"{MODEL}:1"])
def test_a_version_is_a_base_and_brings_what_it_honours(
    root: str, first: local.LocalRun, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = preflight.check(
        config_of(root, "onward", f"model.weights={text}", "request.classes=[3]", "request.exchange={3: 5}")
    )
    assert prepared.base.digest == first.result["weights_digest"]
    assert prepared.config.model.weights == f"models:/{MODEL}/1", "an alias that moves changes no run"
    assert prepared.config.request.forgotten_earlier == [1] and 1 not in prepared.subject["retained"]
    assert prepared.base_version is not None
    assert prepared.base_version.request_ids == ("r1",) and "honours r1" in prepared.base_version.line


def test_the_next_version_honours_what_its_base_did(root: str, first: local.LocalRun) -> None:
    from pipeline.tracking.registry import honoured, version_tags

    weights = f"model.weights={MODEL}:1"
    asked = ["request.classes=[3]", "request.exchange={3: 5}", "request.id=r2"]
    run = local.unlearn(config_of(root, "second", weights, *asked))
    assert run.result["base_version"]["version"] == 1
    # as if it had been measured so: a run of a few steps on a tiny model may come to either
    check = {"name": "forget_fraction/class", "value": 0.0, "bound": 0.05, "passed": True}
    closed = run.result | {
        "requests": [one | {"closed": True} for one in run.result["requests"]],
        "gate": {"passed": False, "checks": [check, check | {"name": "settled", "passed": False}]},
    }
    assert honoured(version_tags(closed)) == {"request_ids": ["r1", "r2"], "forgotten_classes": [1, 3]}
    lost = {"gate": {"passed": False, "checks": [check | {"passed": False}]}}
    assert honoured(version_tags(closed | lost)) == {"request_ids": ["r2"], "forgotten_classes": [1, 3]}
    open_ = {"requests": [one | {"closed": False} for one in closed["requests"]]}
    assert honoured(version_tags(closed | open_)) == {"request_ids": ["r1"], "forgotten_classes": [1, 3]}
    many = closed | {"requests": [{"id": f"{n:0100d}", "closed": True} for n in range(200)]}
    tags = version_tags(many)
    assert all(len(value) <= 5000 for value in tags.values())
    listed = honoured(tags)
    assert listed is not None and len(listed["request_ids"]) == 201


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([f"model.weights={MODEL}:9"], r"model\.weights: .*:9: got '9', expected an alias or a number of"),
        (["model.weights=models:/nothing@champion"], r"model\.weights: .*no model 'nothing' is registered"),
        (
            [f"model.weights={MODEL}:1", "request.classes=[8]", "request.exchange={8: 1}"],
            "class 8 would give class 1, which was forgotten earlier; choose a retained class",
        ),
    ],
)
def test_a_base_that_does_not_fit_is_refused(
    root: str, first: local.LocalRun, more: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        preflight.check(config_of(root, "refused", *more))
    assert "\n" not in str(caught.value) and not storage.exists(storage.join(root, "runs", "refused"))


def test_what_names_a_version_and_what_does_not() -> None:
    assert registered.named("models:/a-b.c/12") == ("a-b.c", "12")
    assert registered.named("models:/m@champion") == ("m", "champion")
    for text in (None, "", "m", "facebook/DiT-XL-2-256", "s3://bucket/model", "/a:7/model"):
        assert registered.named(text) is None, text
    for text in ("models:/m", "models:/m@", "models:/m:7", "models:m@champion"):
        with pytest.raises(InputError, match=r"expected models:/<name>@<alias> or models:/<name>/<number>"):
            registered.named(text)


def test_a_version_made_before_brings_the_request_of_its_run(
    root: str, first: local.LocalRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tags list no requests, its run's settings do."""
    from pipeline.tracking import registry

    resolve: Callable[..., Any] = registry.resolve

    def before(*arguments: Any) -> Any:
        version = resolve(*arguments)
        for name in ("request_ids", "forgotten_classes"):
            version.tags.pop(name)
        return version

    monkeypatch.setattr(registry, "resolve", before)
    config = config_of(root, "onward", f"model.weights={MODEL}:1", *LATER[:1], "request.exchange={3: 5}")
    _, base = registered.with_base_version(config, dict.fromkeys(range(10), ""))
    assert base is not None and (base.request_ids, base.forgotten_classes) == (("r1",), (1,))
