"""Checks of many classes: every class in its turn, and nothing sampled that decides nothing."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from runs import run, run_config, run_inputs

from pipeline.config import UnlearnConfig, parse
from pipeline.errors import InputError
from pipeline.evaluation.context import AFTER
from pipeline.evaluation.metrics import table
from pipeline.evaluation.metrics.retain_accuracy import accuracy
from pipeline.evaluation.metrics.table import evaluate, evaluate_in_looks
from pipeline.evaluation.portions import Portions
from pipeline.evaluation.rotation import Window, checks_to_see_all, paired, require_rotation, turn
from pipeline.evaluation.sampling import plans
from pipeline.training.periodic_eval import check, check_spec
from pipeline.unlearning.collectives import Collectives

NAMES = ("forget_fraction", "exchange_fraction", "exchange_density", "leakage", "retain_accuracy", "fid")


@pytest.mark.parametrize(("classes", "size"), [(999, 50), (10, 3), (7, 7), (5, 4)])
def test_every_class_is_sampled_in_any_window_of_checks(classes: int, size: int) -> None:
    retained = list(range(100, 100 + classes))
    turns = [turn(retained, size, number, seed=3) for number in range(3 * classes)]
    window = checks_to_see_all(classes, size)
    assert all(len(set(one)) == min(size, classes) for one in turns)
    for first in range(len(turns) - window):
        assert {label for one in turns[first : first + window] for label in one} == set(retained)
    seen = Counter(label for one in turns[:classes] for label in one)
    assert set(seen.values()) == {min(size, classes)}, "K checks of m classes: each class m times"


def test_an_estimate_from_some_classes_says_how_sure_it_is() -> None:
    labels = [c for c in range(200) for _ in range(20)]
    g = torch.Generator().manual_seed(0)
    right = (torch.rand(len(labels), generator=g) < 0.9).tolist()
    before = accuracy(labels, [c if hit else -1 for c, hit in zip(labels, right)])
    # every third class loses half of its images
    lost = (torch.rand(len(labels), generator=g) < 0.5).tolist()
    now = [c if hit and not (c % 3 == 0 and gone) else -1 for c, hit, gone in zip(labels, right, lost)]
    truth, covered = accuracy(labels, now)["mean"], 0
    for number in range(200):
        some = set(turn(range(200), 20, number, seed=1))
        images = [i for i, c in enumerate(labels) if c in some]
        estimate = paired(before, accuracy([labels[i] for i in images], [now[i] for i in images]))
        covered += estimate.low <= truth <= estimate.high
        assert estimate.n == 400
    assert covered >= 186, "95 % intervals"
    assert paired(before, before).value == before["mean"]


def test_the_window_says_what_was_seen_and_since_when() -> None:
    window = Window()
    window.add(5, accuracy([1, 1, 2, 2], [1, 1, 2, 0]))
    window.add(10, accuracy([2, 2, 3, 3], [2, 2, 0, 0]))
    record = Window(window.plain()).record()
    assert (record["rotation/classes"], record["rotation/since"]) == (3, 5)
    assert (record["rotation/accuracy"], record["rotation/accuracy/n"]) == (4 / 6, 6)


def test_a_check_in_two_looks_measures_what_one_does() -> None:
    subject = replace(run_inputs(run_config()).subject)
    spec = check_spec(subject.spec, run_config().evaluate, 0, "check at 2")
    context, ranks = replace(subject, spec=spec), Collectives()
    whole = evaluate(NAMES, context, ranks)[AFTER]
    looked = evaluate_in_looks(NAMES, context, ranks, first=5, target=1.1)[AFTER]  # nothing is above 1.1
    for name in ("forget_fraction", "exchange_fraction", "retain_accuracy", "leakage"):
        assert looked[name] == whole[name]
    stopped = evaluate_in_looks(NAMES, context, ranks, first=5, target=0.0)[AFTER]
    assert stopped["forget_fraction"]["n"] == 5, "no share is below 0: the first look decides"
    assert stopped["retain_accuracy"] == whole["retain_accuracy"]


def test_the_second_look_has_the_images_that_the_first_left_out() -> None:
    spec = check_spec(run_inputs(run_config()).subject.spec, run_config().evaluate, 0, "check at 2")
    spec = replace(spec, earlier=(3,), retained=(0, 2))
    pairs = [
        {pair for one in plans(part) for pair in zip(one.labels, one.seeds)}
        for part in (spec, *table.looks(spec, 7))
    ]
    assert pairs[1] | pairs[2] == pairs[0] and not pairs[1] & pairs[2]


def test_a_rotating_run_samples_each_class_in_turn_and_keeps_book() -> None:
    config = run_config(**{"evaluate.rotation": 2, "evaluate.first_look": 10})
    outcome, records, _ = run(config)
    checks = [r for r in records if r["kind"] == "evaluation" and r["step"] > 0]
    assert [r["rotation/classes"] for r in checks] == [2, 3, 3], "two of three classes a check"
    assert all(r["retain_accuracy/mean/n"] == 6 for r in checks)
    assert not any(key.startswith("fid/") for r in checks for key in r), "of two classes of three"
    assert outcome.after["fid"], "before and after: of all classes"
    assert set(outcome.after["retain_accuracy"]["per_class"]) == {"0", "2", "3"}


def test_too_few_checks_to_see_every_class_are_refused_with_the_number() -> None:
    values: dict[str, Any] = {"request": {"classes": [1]}, "optim": {"max_steps": 100}}
    enough = parse(UnlearnConfig, values | {"evaluate": {"every": 5, "rotation": 50}})
    require_rotation(enough, 999)
    few = parse(UnlearnConfig, values | {"evaluate": {"every": 5, "rotation": 10}})
    with pytest.raises(InputError, match=r"10 of 999 .* need 100 checks .* at most 20 .* give 50 or more"):
        require_rotation(few, 999)
    capped = parse(UnlearnConfig, values | {"evaluate": {"every": 5, "rotation": 50, "max_checks": 4}})
    with pytest.raises(InputError, match=r"at most 4 .* give 250 or more"):
        require_rotation(capped, 999)
    with pytest.raises(
        InputError, match=r"first_look: got 200, expected fewer than evaluate.samples \(200\)"
    ):
        parse(UnlearnConfig, values | {"evaluate": {"first_look": 200}})


def test_a_killed_final_measure_goes_on_with_the_portions_that_are_left(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = run_inputs(run_config(**{"evaluate.batch": 10}))
    whole = check(inputs, 6, final=True)
    portions, sampled = Portions(f"file://{tmp_path}/portions", images=30), []
    original = table.sample_images

    def counted(context: Any, ranks: Any, collect: Any = (), portion: tuple[int, int] = (0, 1)) -> Any:
        if len(sampled) == 3 and portion[0] == 3:
            sampled.append(-1)
            raise KeyboardInterrupt
        sampled.append(portion[0])
        return original(context, ranks, collect, portion)

    monkeypatch.setattr(table, "sample_images", counted)
    with pytest.raises(KeyboardInterrupt):
        check(inputs, 6, final=True, portions=portions)
    again = check(inputs, 6, final=True, portions=portions)
    assert sampled[:4] == [0, 1, 2, -1] and sampled[4] == 3, "what was there is not sampled again"
    assert again.metrics["forget_fraction"] == whole.metrics["forget_fraction"]
    assert again.metrics["retain_accuracy"] == whole.metrics["retain_accuracy"]
    assert again.metrics["leakage"] == whole.metrics["leakage"]
    assert again.metrics["fid"]["judge"] == pytest.approx(whole.metrics["fid"]["judge"], rel=1e-9)
