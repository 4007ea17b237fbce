"""Purged classes of which samples of the base stand in, when that is asked for; and what --dry-run says of
this and of everything else."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pretended import PretendedModel
from test_merge import ledger_of, received, terms

from pipeline import storage
from pipeline.config import parse
from pipeline.config.process import ProcessConfig
from pipeline.data import tombstones
from pipeline.data.lake import lake_uri, read_lake
from pipeline.data.parquet_shards import read_column
from pipeline.errors import InputError
from pipeline.requests import ledger, plan, preview, submit


@pytest.fixture
def model(root: str, run: Callable, asked: Callable) -> PretendedModel:
    """Version 1 honours r1, whose rows were purged since; r3 waits."""
    pretended = PretendedModel(root)
    asked("r1", 1, 7)
    run(pretended)
    tombstones.bury(root, "r1", [], labels=[1])
    asked("r3", 3, 5)
    return pretended


def test_samples_stand_in_only_when_asked_for(model: PretendedModel, run: Callable) -> None:
    assert not run(model, rehearse="samples", rehearse_samples=60).alarms
    made = model.plans[1]
    request = made.config.request
    assert made.start.weights == "base" and (request.classes, request.forgotten_earlier) == ([1, 3], [])
    assert (request.stood_in, request.stand_in_samples, request.stand_in_weights) == ([1], 60, None)
    assert any("the purged rows of classes 1 are stood in for by 60 samples" in line for line in made.lines)


def test_from_the_champion_the_base_draws_them(root: str, model: PretendedModel, run: Callable) -> None:
    assert not run(model, rehearse="samples", start="champion").alarms
    request = model.plans[1].config.request
    assert (request.classes, request.forgotten_earlier, request.stood_in) == ([3], [1], [1])
    assert request.stand_in_weights == f"{root}/models/dit-tiny-digits"
    assert model.plans[1].config.model.weights == "models:/dit-digits-unlearned/1"


def test_nothing_stands_in_for_what_is_there_or_for_named_samples(
    root: str, run: Callable, asked: Callable, configured: Callable, tmp_path: Path
) -> None:
    pretended = PretendedModel(root)
    asked("r1", 1, 7)
    with pytest.raises(InputError, match="rehearse: got samples, but no rows of a whole class were purged"):
        run(pretended, rehearse="samples")
    assert not pretended.plans and ledger.read(root).requests["r1"].state == "accepted"
    names = storage.join(root, "ids.txt")
    storage.write_text(names, "\n".join(ids_of(root, 2)[:3]))
    submit.submit(configured("s2", sample_ids=names))
    run(pretended)
    for name, label in (("r1", 1), ("s2", 2)):
        tombstones.bury(root, name, [], labels=[label])
    asked("r3", 3, 5)
    with pytest.raises(InputError, match="start: got base, but the rows of request s2 are not there"):
        run(pretended, rehearse="samples", start="base")
    run(pretended, rehearse="samples")
    made = pretended.plans[1]
    assert made.start.weights == "champion" and made.config.request.stood_in == [1]


def test_a_reopened_request_is_answered_by_what_stands_in(root: str, model: PretendedModel) -> None:
    moves = [ledger.Move(name="reopened", request="r1", details={"reason": "an audit failed"})]
    ledger.append(root, lambda known: moves if known.requests["r1"].state == "closed" else [])
    assert preview.preview(parse(ProcessConfig, {"storage": root}), model).left == {
        "r1": "its data was purged"
    }
    sampled = preview.preview(parse(ProcessConfig, {"storage": root, "rehearse": "samples"}), model)
    assert sampled.plan is not None and sampled.plan.config.request.stood_in == [1] and not sampled.left


def test_a_run_without_stand_ins_is_called_as_before() -> None:
    """A processor that was killed before there were stand-ins goes on with its run."""
    asked = terms({1: [7]}, model_name="dit-digits-unlearned", lake="digits")
    known = ledger_of(*received("r1", asked))
    made = plan.make(
        parse(ProcessConfig, {"storage": "/root"}),
        list(known.requests.values()),
        plan.Rows(ids={"r1": {}}, gone={}),
        None,
    )
    assert made.run_id == "requests-38f8b9e7a67378ca"


def ids_of(root: str, label: int) -> list[str]:
    lake = read_lake(lake_uri(root, "digits"))
    return [name for shard in lake.shards([label]) for name in read_column(lake.uri, shard, "sample_id")]


def test_the_plan_is_shown_and_nothing_written(root: str, settings: Callable, asked: Callable) -> None:
    pretended = PretendedModel(root)
    assert preview.preview(settings(), pretended).lines == ["nothing is open"]
    asked("r1", 1, 7)
    before = sorted(str(path) for path in Path(root).rglob("*"))
    outcome = preview.preview(settings(), pretended)
    assert (
        outcome.plan is not None
        and not outcome.alarms
        and outcome.lines
        == [
            "open: r1; answered before: none",
            f"run {outcome.plan.run_id} forgets classes 1",
            "from base: the rows of everything answered before are there",
        ]
    )
    assert sorted(str(path) for path in Path(root).rglob("*")) == before


def test_a_dry_run_says_what_the_call_would(
    root: str, model: PretendedModel, run: Callable, settings: Callable, configured: Callable, asked: Callable
) -> None:
    """Where a list of ids is gone, a class was purged, and the ledger is."""
    names = [storage.join(root, f"{name}.txt") for name in ("gone", "there", "too")]
    for k, name in enumerate(names):
        storage.write_text(name, "\n".join(ids_of(root, 2)[3 * k : 3 * k + 3]))
        submit.submit(configured(f"s{k}", sample_ids=name))
    asked("r6", 6, 8)
    storage.remove(names[0])
    storage.remove(storage.join(root, "requests", "ids", "s0.json"))
    tombstones.bury(root, "r6", [], labels=[6])
    outcome, summary = preview.preview(settings(), model), run(model)
    assert outcome.left == summary.left and outcome.left.keys() == {"s0", "r6"} and outcome.alarms
    assert outcome.plan is not None and outcome.plan.run_id == model.plans[1].run_id
    assert "left: request r6: its data was purged" in outcome.lines
    storage.remove(ledger.folder(root))
    with pytest.raises(InputError, match="which the ledger does not know") as dry:
        preview.preview(settings(), model)
    with pytest.raises(InputError) as real:
        run(model)
    assert str(dry.value) == str(real.value)


def test_a_version_that_does_not_honour_what_was_purged_is_no_start(
    root: str, model: PretendedModel, run: Callable
) -> None:
    storage.write_json(f"{root}/versions/9.json", {"run_id": "other", "request_ids": [], "start": "base"})
    model.promote(9)
    with pytest.raises(
        InputError, match=r"request r1 are not there .* version 9, which serves, does not honour"
    ):
        run(model)
    assert len(model.plans) == 1, "nothing was trained"
