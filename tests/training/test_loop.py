"""The run as a whole: repeatable to the bit, continued as if never stopped, the same on
two ranks, guarded."""

import json
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from distributed import run_world
from runs import (
    GOLDEN,
    GOLDEN_RUNS,
    GOLDEN_STEPS,
    golden_losses,
    run,
    run_config,
    run_inputs,
    steps_of,
    trained_on_this_rank,
)
from tiny import relative

from models.weights import weights_digest
from pipeline.evaluation.confidence import proportion
from pipeline.evaluation.manifold import Manifold
from pipeline.evaluation.stopping_rule import SettleRule
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.initialise import PUSHES, begin, best
from pipeline.training.loop import Outcome, unlearn
from pipeline.unlearning.collectives import NonFiniteError
from pipeline.unlearning.methods.table import METHODS

SETTINGS: dict[str, dict[str, Any]] = {
    "uno_s": {"method.name": "uno_s"},
    "everything on": {
        "method.name": "uno_s",
        "method.targets": "data",
        "method.contrast": True,
        "method.share_noise": True,
        "optim.ema": 0.5,
        "optim.moment_warmup_steps": 2,
        "optim.warmup_steps": 3,
        "optim.micro_batch": 4,
        "optim.weight_decay": 0.1,
        "trainable": "all",
    },
    "salun": {"method.name": "salun", "optim.ema": 0.9},
}


def steps(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without their timings."""
    return [{key: value for key, value in record.items() if "seconds" not in key} for record in records]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_continued_run_equals_an_uninterrupted_one_to_the_bit(name: str) -> None:
    config = run_config(**SETTINGS[name])
    whole, records, saved = run(config)
    assert whole.steps == 6 and len(saved) == 3
    for index, files in enumerate(saved[:2]):
        start = Checkpoint.from_files(files)
        assert start.progress["step"] == 2 * (index + 1)
        rest, later, _ = run(config, start)
        assert weights_digest(rest.trained) == weights_digest(whole.trained)
        assert (rest.steps, rest.before, rest.after) == (whole.steps, whole.before, whole.after)
        assert (rest.first_crossing_step, rest.settled_step) == (
            whole.first_crossing_step,
            whole.settled_step,
        )
        assert steps(later) == [r for r in steps(records) if r["step"] > start.progress["step"]]


def test_a_finished_run_continued_does_nothing_more() -> None:
    config = run_config()
    whole, _, saved = run(config)
    rest, records, again = run(config, Checkpoint.from_files(saved[-1]))
    assert (rest.steps, records, again) == (6, [], [])
    assert weights_digest(rest.trained) == weights_digest(whole.trained) and rest.after == whole.after


def test_a_continued_run_still_has_the_best_weights_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_the_first(rule: SettleRule, step: int, *measured: Any) -> bool:
        rule.last_step, rule.best_step = step, rule.best_step or step
        return rule.best_step == step

    monkeypatch.setattr(SettleRule, "observe", only_the_first)
    config = run_config()
    whole, _, saved = run(config)
    rest, _, _ = run(config, Checkpoint.from_files(saved[1]))
    assert rest.best_step == whole.best_step == 2
    assert weights_digest(rest.trained) == weights_digest(whole.trained)


def test_same_seed_same_weights_other_seed_others() -> None:
    digests = [weights_digest(run(run_config(seed=seed))[0].trained) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def several_on_this_rank(changes: dict[str, dict[str, Any]]) -> dict[str, dict[str, torch.Tensor]]:
    return {name: trained_on_this_rank(settings) for name, settings in changes.items()}


def test_two_ranks_train_the_same_weights() -> None:
    """Up to the order in which float32 sums are taken."""
    same = {
        "optim.max_steps": 3,
        "evaluate.every": 3,
        "optim.micro_batch": None,
        "trainable": "labels_and_adaln:2",
    }
    changes = {name: {**SETTINGS[name], **same} for name in ("uno_s", "everything on")}
    base = dict(run_inputs(run_config()).model.net.named_parameters())
    alone, (first, second) = several_on_this_rank(changes), run_world(2, several_on_this_rank, changes)
    for name, trained in alone.items():
        assert all(torch.equal(first[name][key], second[name][key]) for key in trained)
        moved = torch.cat([(tensor - base[key]).reshape(-1) for key, tensor in trained.items()])
        apart = torch.cat([(tensor - first[name][key]).reshape(-1) for key, tensor in trained.items()])
        assert moved.norm() > 0.1 and apart.norm() < 1e-3 * moved.norm(), name


def test_only_the_trained_subset_moves() -> None:
    config = run_config(**{"trainable": "labels"})
    inputs = run_inputs(config)
    before = {name: tensor.clone() for name, tensor in inputs.model.net.state_dict().items()}
    outcome = unlearn(inputs)
    moved = {
        name
        for name, tensor in inputs.model.net.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert moved == set(outcome.trained) == {"y_embedder.embedding_table.weight"}


def test_the_label_table_has_a_rate_of_its_own() -> None:
    """Adam's first step is as long as the rate in every parameter that has a gradient."""
    config = run_config(
        **{
            "method.name": "exchange",
            "optim.max_steps": 1,
            "optim.lr": 1e-4,
            "optim.label_lr": 1e-2,
            "optim.clip": None,
        }
    )
    trained = run(config)[0].trained
    base = run_inputs(config).model.net.state_dict()
    moved = {name: (value - base[name]).abs().max().item() for name, value in trained.items()}
    table = "y_embedder.embedding_table.weight"
    assert moved.pop(table) == pytest.approx(1e-2, rel=1e-2) and max(moved.values()) == pytest.approx(
        1e-4, rel=1e-2
    )


def test_a_run_may_begin_at_the_exchange_class_and_measures_the_base_before() -> None:
    config = run_config(
        **{
            "method.name": "exchange",
            "method.label_init": "exchange",
            "trainable": "labels",
            "optim.max_steps": 2,
        }
    )
    outcome, _, _ = run(config)
    plain, _, _ = run(
        config.model_copy(update={"method": config.method.model_copy(update={"label_init": "base"})})
    )
    table = outcome.trained["y_embedder.embedding_table.weight"]
    # it is the minimum: nothing moves it away
    torch.testing.assert_close(table[1], table[2], rtol=0, atol=1e-4)
    assert outcome.before == plain.before


@pytest.mark.parametrize(
    ("tried", "wanted"),
    [
        # too far beyond there are no images
        ({0.0: (3, 0.84), 0.1: (0, 0.89), 0.25: (0, 0.91), 0.5: (0, 0.74), 1.0: (0, 0.05)}, 0.25),
        ({0.0: (1, 0.9), 0.5: (0, 0.9), 1.0: (0, 0.9)}, 0.0),
        # the only one that is enough
        ({0.0: (52, 0.71), 0.1: (16, 0.85), 0.25: (8, 0.6), 0.5: (0, 0.32)}, 0.5),
        # none is: the least forgotten
        ({0.0: (52, 0.71), 0.1: (16, 0.85), 0.25: (16, 0.86), 0.5: (30, 0.9)}, 0.25),
    ],
)
def test_the_push_is_the_one_drawn_best_of_those_that_are_enough(
    tried: dict[float, tuple[int, float]], wanted: float
) -> None:
    assert (
        best({push: (proportion(hits, 200), exchange) for push, (hits, exchange) in tried.items()}, 0.05)
        == wanted
    )


def test_the_start_is_at_the_push_that_was_tried_and_found_best() -> None:
    config = run_config(
        **{"method.label_init": "exchange", "method.label_extrapolation": "auto", "optim.max_steps": 1}
    )
    inputs = run_inputs(config)
    base = inputs.model.label_table().detach().clone()
    tried: list[dict[str, Any]] = []
    chosen = begin(inputs, tried.append)
    assert [(line["class"], line["push"]) for line in tried] == [(1, push) for push in PUSHES]
    n = config.evaluate.samples
    found = {
        line["push"]: (proportion(round(line["forget_fraction"] * n), n), line["exchange_fraction"])
        for line in tried
    }
    push = best(found, config.gate.max_forget_fraction)
    assert chosen == {1: push}
    wanted = base.clone()
    wanted[1] = base[2] + push * (base[2] - base[1])
    torch.testing.assert_close(inputs.model.label_table().detach(), wanted)


def test_a_run_continued_after_its_start_keeps_the_push() -> None:
    config = run_config(**{"method.label_init": "exchange", "method.label_extrapolation": "auto"})
    whole, _, saved = run(config)
    again, _, _ = run(config, Checkpoint.from_files(saved[0]))
    assert all(torch.equal(whole.trained[name], again.trained[name]) for name in whole.trained)


def test_priming_fills_the_moments_and_moves_nothing() -> None:
    logs, named, optimiser = steps_of({"optim.moment_warmup_steps": 5, "optim.weight_decay": 0.1}, steps=0)
    base = dict(run_inputs(run_config(), dtype=torch.float64).model.net.named_parameters())
    assert len(logs) == 5 and all(log["lr"] == 0 for log in logs)
    for name, parameter in named.items():
        assert torch.equal(parameter, base[name])
        assert (
            optimiser.state[parameter]["step"] == 5
            and optimiser.state[parameter]["exp_avg_sq"].abs().max() > 0
        )
    moved = steps_of({"optim.moment_warmup_steps": 5}, steps=1)[1]
    assert all(not torch.equal(parameter, base[name]) for name, parameter in moved.items())


def test_the_averaged_weights_are_what_is_checked_and_returned() -> None:
    inputs = run_inputs(run_config(**{"optim.ema": 0.9}))
    outcome = unlearn(inputs)
    last = dict(inputs.model.net.named_parameters())
    assert all(not torch.equal(outcome.trained[name], last[name]) for name in outcome.trained)
    plain = run_inputs(run_config())
    outcome = unlearn(plain)
    last = dict(plain.model.net.named_parameters())
    assert all(torch.equal(outcome.trained[name], last[name]) for name in outcome.trained)


def test_a_settled_run_ends_before_its_steps_are_spent() -> None:
    """A bound that everything satisfies settles at the first check, held for the window."""
    settings = {"gate.max_forget_fraction": 1.0, "evaluate.patience_steps": 2, "optim.max_steps": 50}
    outcome, records, saved = run(run_config(**settings))
    assert outcome.before["forget_fraction"]["value"] < 1
    assert (outcome.steps, outcome.first_crossing_step, outcome.settled_step) == (4, 2, 2)
    assert outcome.timing["seconds_to_forget"] is not None and len(saved) == 2
    assert [r["step"] for r in records if r["kind"] == "evaluation"] == [0, 2, 4]
    assert Checkpoint.from_files(saved[-1]).progress["rule"]["below_since"] == 2


def test_a_settled_run_goes_on_until_its_label_samples_what_it_was_asked_to() -> None:
    settings = {
        "gate.max_forget_fraction": 1.0,
        "evaluate.patience_steps": 2,
        "optim.max_steps": 8,
        "optim.lr": 1e-6,
    }

    def ended(least: float | None) -> Outcome:
        inputs = run_inputs(run_config(**settings, **{"gate.min_exchange_fidelity": least}))
        with torch.no_grad():
            drawn = inputs.model.sample(
                labels=torch.tensor([2] * 40), seeds=list(range(40)), cfg_scale=2.0, steps=2
            )
            alike = Manifold.of(inputs.subject.judge.features(drawn))
        return unlearn(replace(inputs, subject=replace(inputs.subject, manifolds={1: alike})))

    at_once, never, unasked = ended(0.0), ended(1.0), ended(None)
    assert at_once.before["exchange_density"]["own"]["value"] > 0
    assert (at_once.stopped, at_once.steps) == (unasked.stopped, unasked.steps) == ("settled", 4)
    assert (never.stopped, never.steps, never.settled_step, never.best_step) == ("steps", 8, 2, 8)


def test_a_record_a_step_with_losses_and_phase() -> None:
    _, records, _ = run(run_config(**{"method.name": "uno_s", "method.penalty": 0.5}))
    taken = [r for r in records if r["kind"] == "step"]
    assert [r["step"] for r in taken] == [1, 2, 3, 4, 5, 6]
    assert [r["phase"] for r in taken] == ["uno", "surgery"] * 3
    assert all(
        set(r) >= {"loss/forget", "loss/keep", "cos", "grad_norm/update", "lr", "seconds"} for r in taken
    )
    assert all(abs(r["cos"]) <= 1 for r in taken)
    json.dumps(records, allow_nan=False)


def test_named_samples_are_watched_by_the_attack() -> None:
    """The rule follows the AUC; the class goes on being sampled, so it counts among the retained ones."""
    settings = {
        "request": {"sample_ids": "ids.txt"},
        "method.targets": "data",
        "method.name": "surgery_ascent",
    }
    outcome, records, _ = run(run_config(**settings))
    checks = [r for r in records if r["kind"] == "evaluation"]
    assert [r["step"] for r in checks] == [0, 2, 4, 6] and all(r["forget_fraction"] is None for r in checks)
    for block in (outcome.before, outcome.after):
        attack = block["membership"]
        assert (attack["n"], attack["heldout_n"]) == (5, 9) and 0 <= attack["low"] <= attack["auc"] <= attack[
            "high"
        ] <= 1
        assert block["forget_fraction"] is None and sorted(block["retain_accuracy"]["per_class"]) == [
            "0",
            "1",
            "2",
            "3",
        ]
    assert outcome.after["membership"]["loss_forget"] > outcome.before["membership"]["loss_forget"]
    always = run(
        run_config(
            **settings,
            **{"gate.max_membership_auc": 1.0, "evaluate.patience_steps": 2, "optim.max_steps": 20},
        )
    )[0]
    never = run(run_config(**settings, **{"gate.max_membership_auc": 0.0}))[0]
    assert (always.settled_step, always.steps) == (2, 4) and (never.settled_step, never.steps) == (None, 6)


def test_a_non_finite_loss_stops_before_the_optimiser_moves() -> None:
    inputs = run_inputs(run_config())
    inputs.streams.forget.side.mean[:] = float("nan")
    before = {name: p.detach().clone() for name, p in inputs.model.net.named_parameters()}
    with pytest.raises(
        NonFiniteError, match=r"step 1: loss of forget is not finite on rank 0; the optimiser was not moved"
    ):
        unlearn(inputs)
    assert all(torch.equal(p, before[name]) for name, p in inputs.model.net.named_parameters())


def test_the_steps_import_neither_the_compiler_nor_sympy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Either would be imported by every worker before its first step, for a second; what is None here raises
    where it is imported."""
    for name in ("torch._dynamo", "torch.fx.experimental.symbolic_shapes"):
        monkeypatch.setitem(sys.modules, name, None)
    assert len(run(run_config(**{"method.name": "uno", "optim.max_steps": 1}))[1]) > 0


def test_every_method_has_recorded_losses() -> None:
    assert {changes["method.name"] for changes in GOLDEN_RUNS.values()} == set(METHODS)
    assert json.loads(GOLDEN.read_text()).keys() == GOLDEN_RUNS.keys()


@pytest.mark.parametrize("name", GOLDEN_RUNS)
def test_losses_are_those_recorded(name: str) -> None:
    """A change of the numbers is meant or it is a fault: `python tests/training/regenerate_golden.py` records
    them anew."""
    wanted = json.loads(GOLDEN.read_text())[name]
    got = golden_losses(GOLDEN_RUNS[name])
    assert got.keys() == wanted.keys()
    assert len(wanted) > 0
    for quantity, values in wanted.items():
        assert len(values) >= GOLDEN_STEPS // 2  # ascent_descent has either loss at every second step
        torch.testing.assert_close(torch.tensor(got[quantity]), torch.tensor(values), rtol=1e-4, atol=1e-6)


def test_bf16_stays_near_float32() -> None:
    single = run(run_config(**{"optim.max_steps": 2}))[0].trained
    half = run(run_config(**{"optim.max_steps": 2, "train.precision": "bf16"}))[0].trained
    for name, tensor in single.items():
        assert half[name].dtype == torch.float32
        assert relative(half[name], tensor) < 0.1
    assert any(not torch.equal(half[name], single[name]) for name in single)
