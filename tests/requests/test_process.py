"""The processor's decisions, on a model whose runs only pretend."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pretended import PretendedModel

from pipeline import lease, storage
from pipeline.config.ledger import LedgerConfig
from pipeline.data import tombstones
from pipeline.data.lake import lake_uri, read_lake
from pipeline.data.parquet_shards import read_column
from pipeline.errors import InputError
from pipeline.requests import ledger, overview, preview, process, submit
from pipeline.requests.ledger import Move
from pipeline.requests.plan import Plan

Configured = Callable[..., LedgerConfig]


def states(root: str) -> dict[str, tuple[str, int | None]]:
    return {name: (r.state, r.version) for name, r in ledger.read(root).requests.items()}


def moves(root: str, request: str) -> list[str]:
    return [entry.move for entry in ledger.read(root).requests[request].history]


def test_two_that_wait_are_answered_by_one_run(root: str, run: Callable, asked: Callable) -> None:
    model = PretendedModel(root)
    asked("r1", 1, 7, due="2999-01-02")
    asked("r3", 3, 5, due="2999-01-01")
    summary = run(model)
    assert not summary.alarms and states(root) == {"r1": ("closed", 1), "r3": ("closed", 1)}
    (plan,) = model.plans
    request = plan.config.request
    assert (request.classes, request.exchange) == ([1, 3], {1: [7], 3: [5]})
    assert [answer.id for answer in request.answers] == ["r1", "r3"] and request.forgotten_earlier == []
    assert [r.id for r in plan.union.open] == ["r3", "r1"], "earliest due date first"
    assert moves(root, "r1") == ["received", "accepted", "answered", "closed"]
    before = ledger.read(root).head
    assert not run(model).alarms and len(model.plans) == 1 and ledger.read(root).head == before, (
        "nothing to do"
    )
    assert not storage.exists(f"{root}/requests/plan.json")
    assert 'href="../runs/' + plan.run_id in Path(root, "requests", "requests.html").read_text()


def test_a_later_run_from_the_base_answers_the_earlier_ones_too(
    root: str, run: Callable, asked: Callable
) -> None:
    model = PretendedModel(root)
    asked("r1", 1, 7)
    run(model)
    asked("r3", 3, 5)
    run(model)
    assert model.plans[1].config.request.classes == [1, 3] and model.plans[1].start.weights == "base"
    assert model.champion().request_ids == ("r1", "r3") and states(root)["r1"] == ("closed", 1)


def test_from_the_champion_earlier_classes_are_no_longer_read(
    root: str, run: Callable, asked: Callable
) -> None:
    model = PretendedModel(root)
    asked("r1", 1, 7)
    run(model, start="champion")
    assert model.plans[0].start.weights == "base", "there is no champion yet"
    asked("r3", 3, 5)
    run(model, start="champion")
    config = model.plans[1].config
    assert (config.request.classes, config.request.forgotten_earlier) == ([3], [1])
    assert config.model.weights == "models:/dit-digits-unlearned/1"
    assert [answer.id for answer in config.request.answers] == ["r1", "r3"], (
        "the earlier one is measured again"
    )
    # a label that gives what is forgotten now is taught something else
    asked("r7", 7, 9)
    run(model, start="champion")
    request = model.plans[2].config.request
    assert (request.classes, request.forgotten_earlier) == ([1, 7], [3])
    assert request.exchange == {1: [9], 3: [5], 7: [9]}


def test_after_a_purge_the_run_starts_from_the_champion(root: str, run: Callable, asked: Callable) -> None:
    model = PretendedModel(root)
    asked("r1", 1, 7)
    run(model)
    tombstones.bury(root, "r1", [], labels=[1])
    asked("r3", 3, 5)
    with pytest.raises(
        InputError, match=r"start: got base, but the rows of request r1 .* purged.*bring it back"
    ):
        run(model, start="base")
    run(model)
    plan = model.plans[1]
    assert (
        plan.start.weights == "champion"
        and "request r1 are not there (its data was purged)" in plan.start.why
    )
    assert plan.config.request.forgotten_earlier == [1] and states(root)["r3"] == ("closed", 2)


def test_a_second_request_for_a_purged_class_waits_for_the_next_run(
    root: str, run: Callable, asked: Callable
) -> None:
    model = PretendedModel(root)
    asked("r1", 1, 7)
    run(model)
    asked("r1-again", 1, 7)
    asked("r6", 6, 8)
    for name, label in (("r1", 1), ("r1-again", 1), ("r6", 6)):
        tombstones.bury(root, name, [], labels=[label])  # as where the lake holds no row of them any more
    summary = run(model)
    assert summary.left.pop("r6") == "its data was purged", "nobody forgot it before"
    assert "nothing to train on" in summary.left["r1-again"] and len(model.plans) == 1
    asked("r3", 3, 5)
    run(model)
    assert states(root)["r1-again"] == states(root)["r3"] == ("closed", 2)


def test_approval(root: str, run: Callable, asked: Callable) -> None:
    model = PretendedModel(root)
    asked("r1", 1, 7)
    summary = run(model, promote="approval")
    assert states(root) == {"r1": ("answered", 1)} and summary.awaiting == {"r1": 1} and not summary.alarms
    assert model.champion() is None
    run(model, promote="approval")
    assert len(model.plans) == 1 and states(root) == {"r1": ("answered", 1)}
    model.promote(1)
    assert run(model, promote="approval").awaiting == {} and states(root) == {"r1": ("closed", 1)}


def test_an_answer_that_may_not_serve_alarms(root: str, run: Callable, asked: Callable) -> None:
    asked("r1", 1, 7)
    summary = run(PretendedModel(root, may_serve=lambda version: False))
    assert summary.alarms and summary.left == {"r1": "version 1 may not serve"}
    assert states(root) == {"r1": ("answered", 1)}
    assert not run(PretendedModel(root)).alarms and states(root) == {"r1": ("closed", 1)}


def test_one_that_fails_by_itself_does_not_hold_the_others_up(
    root: str, run: Callable, asked: Callable
) -> None:
    asked("r1", 1, 7)
    asked("r3", 3, 5)
    asked("r0", 0, 6)

    class OnlyWithR3(PretendedModel):
        def answer(self, plan: Any) -> Any:
            self.refusals = ("refused",) if "r3" in plan.request_ids else ()
            return super().answer(plan)

    model = OnlyWithR3(root, failures={"r3": "class 3: 7 % at most 5 %"})
    summary = run(model)
    assert summary.left == {"r3": "class 3: 7 % at most 5 %"} and summary.alarms
    assert states(root) == {"r1": ("closed", 2), "r3": ("accepted", None), "r0": ("closed", 2)}
    assert [plan.config.request.classes for plan in model.plans] == [[0, 1, 3], [0, 1]]
    assert moves(root, "r3") == ["received", "accepted", "postponed"]
    # called again, nothing new is said, and what was found is not run again
    assert run(model).left == summary.left and moves(root, "r3") == ["received", "accepted", "postponed"]
    assert len(model.versions()) == 2 and states(root)["r1"] == ("closed", 2)


def test_the_gate_refuses_for_no_requests_fault(root: str, run: Callable, asked: Callable) -> None:
    asked("r1", 1, 7)
    asked("r3", 3, 5)
    model = PretendedModel(root, refusals=("retain_accuracy/min is 0.5",))
    for _ in range(2):
        summary = run(model)
        assert summary.gate_failed and (
            set(summary.left) == {"r1", "r3"}
            and "version 1: retain_accuracy/min is 0.5" in summary.left["r1"]
        )
        assert moves(root, "r1") == ["received", "accepted", "postponed"] and len(model.versions()) == 1
    # other settings are another run
    other = PretendedModel(root)
    assert not run(other, unlearn={"optim": {"lr": 0.02}}).alarms
    assert states(root) == {"r1": ("closed", 2), "r3": ("closed", 2)}


def test_a_version_that_lost_an_earlier_request_answers_none(
    root: str, run: Callable, asked: Callable
) -> None:
    asked("r1", 1, 7)
    run(PretendedModel(root))
    asked("r3", 3, 5)
    summary = run(PretendedModel(root, failures={"r1": "class 1: 20 % at most 5 %"}))
    assert summary.left == {"r3": "version 2: request r1: class 1: 20 % at most 5 %"}
    assert states(root) == {"r1": ("closed", 1), "r3": ("accepted", None)}


def test_samples_of_several_requests(
    root: str, run: Callable, configured: Configured, tmp_path: Path
) -> None:
    lake = read_lake(lake_uri(root, "digits"))
    names = {
        label: [name for shard in lake.shards([label]) for name in read_column(lake.uri, shard, "sample_id")]
        for label in (2, 4)
    }
    for name, label in (("a", 2), ("b", 4)):
        (tmp_path / name).write_text("\n".join(names[label][:3]) + "\n")
        submit.submit(configured(f"s{name}", sample_ids=str(tmp_path / name)))
    model = PretendedModel(root)
    (tmp_path / "b").rename(tmp_path / "away")
    storage.remove(storage.join(root, "requests", "ids", "sb.json"))  # as a ledger of before has none
    summary = run(model)
    assert list(summary.left) == ["sb"] and "cannot be read, and nobody" in summary.left["sb"]
    request = model.plans[0].config.request
    assert (request.sample_ids, request.sample_classes, request.classes) == (str(tmp_path / "a"), [2], [])
    assert model.plans[0].config.method.targets == "data", "nothing else would move"
    (tmp_path / "away").rename(tmp_path / "b")
    assert not run(model).alarms
    request = model.plans[1].config.request
    assert request.sample_ids == f"{root}/runs/{model.plans[1].run_id}/sample_ids.txt"
    assert request.sample_classes == [2, 4] and [a.sample_count for a in request.answers] == [3, 3]
    # whoever asks for the whole class asks for these samples too
    submit.submit(configured("r2", classes=[2], exchange={2: 5}))
    run(model)
    request = model.plans[2].config.request
    assert (request.classes, request.sample_classes) == ([2], [4])
    assert model.plans[2].config.method.targets == "teacher"
    assert {a.id: a.sample_count for a in request.answers} == {"r2": 0, "sa": 0, "sb": 3}
    assert {a.id: a.classes for a in request.answers} == {"r2": [2], "sa": [2], "sb": []}


def test_purged_samples_cannot_be_measured_again(
    root: str, run: Callable, asked: Callable, configured: Configured, tmp_path: Path
) -> None:
    lake = read_lake(lake_uri(root, "digits"))
    (tmp_path / "ids").write_text(read_column(lake.uri, lake.shards([2])[0], "sample_id")[0])
    submit.submit(configured("s2", sample_ids=str(tmp_path / "ids")))
    run(PretendedModel(root))
    tombstones.bury(root, "s2", [], labels=[2])
    (tmp_path / "ids").unlink()
    asked("r1", 1, 7)
    model = PretendedModel(root)
    run(model)
    (plan,) = model.plans
    assert plan.start.weights == "champion" and plan.config.request.sample_ids is None
    assert [a.id for a in plan.config.request.answers if a.purged] == ["s2"] and states(root)["r1"] == (
        "closed",
        2,
    )


def test_one_withdrawn_during_the_run_is_not_honoured(root: str, run: Callable, asked: Callable) -> None:
    def during(plan: Any) -> None:
        if "r3" in plan.request_ids:
            ledger.append(
                root,
                lambda known: (
                    [Move(name="withdrawn", request="r3", details={"reason": "a mistake"})]
                    if known.requests["r3"].is_open
                    else []
                ),
            )

    asked("r1", 1, 7)
    asked("r3", 3, 5)
    model = PretendedModel(root, during=during)
    run(model)
    assert states(root) == {"r1": ("closed", 2), "r3": ("withdrawn", None)}
    assert model.champion().request_ids == ("r1",)


def test_a_plan_that_was_begun_comes_first(root: str, run: Callable, asked: Callable) -> None:
    def ended(plan: Any) -> None:
        raise KeyboardInterrupt

    asked("r1", 1, 7)
    with pytest.raises(KeyboardInterrupt):
        run(PretendedModel(root, during=ended))
    asked("r3", 3, 5)
    model = PretendedModel(root)
    run(model)
    assert [plan.request_ids for plan in model.plans] == [["r1"], ["r1", "r3"]]
    assert states(root) == {"r1": ("closed", 1), "r3": ("closed", 2)}


def test_a_failed_audit_has_it_answered_anew(root: str, run: Callable, asked: Callable) -> None:
    asked("r1", 1, 7)
    model = PretendedModel(root)
    run(model)
    failed = {"version": 1, "passed": False, "reason": "class 1: 9 % of 500"}
    # ended before it could reopen the request
    ledger.append(
        root,
        lambda known: (
            [Move(name="audited", request="r1", details=failed)]
            if known.requests["r1"].history[-1].move == "closed"
            else []
        ),
    )
    run(model)
    assert moves(root, "r1")[4:] == ["audited", "reopened", "answered", "closed"]
    assert states(root) == {"r1": ("closed", 2)} and model.plans[1].config.seed == 1
    assert model.plans[0].run_id != model.plans[1].run_id, "the weights that failed would come again"


def test_what_somebody_has_to_mend(root: str, run: Callable, asked: Callable, configured: Configured) -> None:
    model = PretendedModel(root)
    storage.write_json(f"{root}/versions/1.json", {"run_id": "x", "request_ids": ["old"]})
    model.promote(1)
    with pytest.raises(
        InputError, match=r"version 1, .* honours request old, which the ledger does not know"
    ):
        run(model)
    with pytest.raises(InputError, match="no lake at"):
        run(model, lake="nope")
    asked("r1", 1, 7)
    with pytest.raises(InputError, match=r"lake: got .*elsewhere.* is about 'digits'; a model has one lake"):
        Path(root, "elsewhere").symlink_to(Path(root, "lakes", "digits"))
        run(model, lake=f"{root}/elsewhere")
    assert model.plans == [] and states(root) == {"r1": ("accepted", None)}


def test_a_second_processor_is_told_who_works(root: str, run: Callable, asked: Callable) -> None:
    asked("r1", 1, 7)
    with (
        lease.held(f"{root}/requests/lease", lasts_s=60),
        pytest.raises(lease.LeaseHeldError, match="held by process"),
    ):
        run(PretendedModel(root))
    assert states(root) == {"r1": ("accepted", None)}


def test_overdue_and_refused_alarm(root: str, run: Callable, asked: Callable) -> None:
    asked("r1", 1, 7, due="2020-01-01")
    model = PretendedModel(root)
    summary = run(model)
    assert summary.overdue == () and not summary.alarms, "answered late is answered"
    asked("r3", 3, 5)
    refusal = Move(name="refused", request="r3", details={"reason": "nobody of that name"})
    ledger.append(root, lambda known: [refusal] if known.requests["r3"].is_open else [])
    assert run(model).refused == ("r3",) and run(model).alarms


def test_a_version_that_lost_a_request_opens_it_again(root: str, run: Callable, asked: Callable) -> None:
    """However the alias was moved: it is closed no longer, and the next run answers it by other weights."""
    model = PretendedModel(root)
    asked("r1", 1, 7)
    run(model)
    asked("r3", 3, 5)
    run(model)
    model.promote(1)
    run(model)
    moves = [entry.move for entry in ledger.read(root).requests["r3"].history]
    assert moves[-4:] == ["closed", "reopened", "answered", "closed"]
    serving = model.champion()
    assert serving is not None and (serving.number, serving.request_ids) == (3, ("r1", "r3"))


def test_a_killed_run_of_samples_goes_on_though_others_were_named_since(
    root: str, run: Callable, configured: Configured, tmp_path: Path
) -> None:
    lake = read_lake(lake_uri(root, "digits"))
    names = [name for shard in lake.shards([2]) for name in read_column(lake.uri, shard, "sample_id")]

    def ask(request_id: str, some: list[str]) -> None:
        (tmp_path / request_id).write_text("\n".join(some) + "\n")
        submit.submit(configured(request_id, sample_ids=str(tmp_path / request_id)))

    class Killed(Exception):
        pass

    def killed(plan: Plan) -> None:
        raise Killed

    ask("sa", names[:3])
    model = PretendedModel(root, during=killed)
    with pytest.raises(Killed):
        run(model)
    ask("sb", names[3:6])
    model.during = lambda plan: None
    run(model)
    assert model.plans[1].run_id == model.plans[0].run_id, "the same run, to its end"
    assert [plan.request_ids for plan in model.plans] == [["sa"], ["sa"], ["sa", "sb"]]


def test_a_reviewer_who_says_no_gets_another_run(
    root: str, run: Callable, asked: Callable, configured: Configured
) -> None:
    model = PretendedModel(root)
    asked("r1", 1, 7)
    run(model, promote="approval")
    with pytest.raises(InputError, match="reason: got none"):
        submit.reopen(configured("r1"))
    assert submit.reopen(configured("r1", reason="damaged zeros"), dry_run=True).state == "answered"
    request = submit.reopen(configured("r1", reason="damaged zeros"))
    assert (request.state, request.reason, request.version) == ("reopened", "damaged zeros", None)
    assert submit.reopen(configured("r1", reason="again")).history == request.history
    run(model)
    first, second = (plan.config.seed for plan in model.plans)
    assert second == first + 1 and ledger.read(root).requests["r1"].version == 2


def test_answered_and_never_promoted_is_overdue_in_the_end(root: str, run: Callable, asked: Callable) -> None:
    asked("r1", 1, 7, received="2026-01-01", due="2026-02-01")
    summary = run(PretendedModel(root), promote="approval")
    assert summary.overdue == ("r1",) and summary.alarms
    told = ledger.read(root)
    assert overview.status(told, ledger.today())["overdue"] == ["r1"]
    assert overview.table(told, ledger.today())[1][1] == "answered, overdue"


def test_a_dry_run_knows_what_was_tried_and_who_works(
    root: str, run: Callable, asked: Callable, settings: Callable
) -> None:
    model = PretendedModel(root, refusals=("worst class 0.51",))
    asked("r1", 1, 7)
    left = run(model).left
    shown = preview.preview(settings(), model)
    assert shown.left == left and "worst class 0.51" in left["r1"] and shown.alarms
    uri = storage.join(ledger.folder(root), process.LEASE)
    with (
        lease.held(uri, lasts_s=60),
        pytest.raises(lease.LeaseHeldError, match="held by"),
    ):
        preview.preview(settings(), model)
