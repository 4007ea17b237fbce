"""A run of depth weights: continued as if never stopped, the same in every world, and the depth of old runs
untouched."""

from typing import Any

import pytest
import torch
from distributed import run_world
from runs import FEW_REDIRECTED, run, run_config, run_inputs, steps_of
from tiny import relative

from models.weights import weights_digest
from pipeline.config import UnlearnConfig, parse, parse_given
from pipeline.config.reading import dump, plain
from pipeline.errors import InputError
from pipeline.runs.request_checks import resolve
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.redirect import redirect_rows
from pipeline.training.step import open_state, train_step
from pipeline.unlearning.methods.table import METHODS

DEEP: dict[str, Any] = {
    "method.depth": "weights",
    "method.name": "exchange",
    "trainable": "all",
    "optim.lr": 1e-3,
    "redirection": {**FEW_REDIRECTED, "buckets": 3, "restart_every": 6},
    "evaluate.to_the_end": True,
}


def deep(**changes: Any) -> dict[str, Any]:
    return {**DEEP, **changes}


def test_a_continued_run_equals_an_uninterrupted_one_to_the_bit() -> None:
    config = run_config(**deep())
    whole, records, saved = run(config)
    assert whole.steps == 6 and len(saved) == 3
    for files in saved[:2]:
        start = Checkpoint.from_files(files)
        assert sorted(start.adversary) == [f"adversary.{index}" for index in range(4)]
        rest, later, _ = run(config, start)
        assert weights_digest(rest.trained) == weights_digest(whole.trained)
        losses = [r["loss/adversary"] for r in records if r["kind"] == "step"]
        rest_losses = [r["loss/adversary"] for r in later if r["kind"] == "step"]
        assert rest_losses == losses[start.progress["step"] :]


def test_steps_move_every_parameter_and_log_what_the_adversary_reaches() -> None:
    logs, named, _ = steps_of(deep(), 2)
    assert {"loss/keep", "loss/adversary"} <= set(logs[0])
    start = steps_of(deep(), 0)[1]
    assert [name for name in named if torch.equal(named[name], start[name])] == []


def deep_steps(changes: dict[str, dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The weights after four steps in float64, in whatever world this process is part of."""
    return {
        name: torch.cat([p.detach().reshape(-1) for p in steps_of(deep(**more), 4)[1].values()])
        for name, more in changes.items()
    }


VARIANTS: dict[str, dict[str, Any]] = {
    "exchange": {},
    "micro-batches": {"optim.micro_batch": 1},
    "surgery": {"method.name": "surgery"},
    "uno_s": {"method.name": "uno_s"},
}


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_world_and_micro_batches_take_the_same_steps(world: int) -> None:
    alone = deep_steps(VARIANTS)
    assert relative(alone["micro-batches"], alone["exchange"]) < 1e-12
    for weights in run_world(world, deep_steps, VARIANTS):
        for name, vector in weights.items():
            assert relative(vector, alone[name]) < 1e-12, name


def elastic_digest(changes: dict[str, Any]) -> str:
    return weights_digest(run(run_config(**changes))[0].trained)


def test_an_elastic_run_is_the_same_to_the_bit_at_any_number_of_workers() -> None:
    changes = deep(**{"train.workers": [1, 4], "optim.max_steps": 3, "evaluate.every": 3})
    alone = elastic_digest(changes)
    assert [run_world(world, elastic_digest, changes) for world in (2, 4)] == [[alone] * 2, [alone] * 4]


def test_it_goes_on_although_it_is_settled() -> None:
    changes = {"gate.max_forget_fraction": 1.0, "evaluate.patience_steps": 2}
    assert run(run_config(**deep(**changes)))[0].stopped == "steps"
    assert run(run_config(**deep(**changes, **{"evaluate.to_the_end": False})))[0].stopped == "settled"


VALUES: dict[str, Any] = {"request": {"classes": [1], "exchange": {1: 2}}, "method": {"depth": "weights"}}


def test_what_is_not_said_follows_the_depth() -> None:
    config = parse(UnlearnConfig, VALUES)
    assert (config.method.name, config.trainable, config.optim.schedule) == ("exchange", "all", "cosine")
    said = parse(UnlearnConfig, {**VALUES, "optim": {"lr": 0.5}, "trainable": "adaln:1"})
    assert (said.optim.lr, said.optim.batch_size, said.trainable) == (0.5, 48, "adaln:1")
    assert parse(UnlearnConfig, plain(config)) == config
    assert "redirection" in dump(config) and "redirection" not in dump(parse(UnlearnConfig, {}))
    assert parse(UnlearnConfig, {}).method.name == "uno_s"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"method": {"depth": "weights", "targets": "data"}}, "method.targets: got data"),
        ({"trainable": "labels"}, "the label table is what an attacker replaces"),
        ({"redirection": {"rows": 20}}, "redirection.rows: got 20, expected a multiple of partition.lanes"),
        ({"redirection": {"pool": 80}}, "redirection.pool: got 80 embeddings for 64 rows"),
        ({"redirection": {"label_rows": 104}}, "expected at most optim.batch_size"),
        ({"model": {"size": "vae-mnist"}}, "takes no labels"),
        ({"method": {"depth": "weights", "contrast": True}}, "method.contrast"),
        (
            {"method": {"depth": "label"}, "redirection": {"pool": 4}},
            "redirection: got it while method.depth is label",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as refusal:
        parse_given(UnlearnConfig, {**VALUES, **values})
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"method": {"depth": "weights", "name": "esd"}}, "method.name: got esd"),
        (
            {
                "request": {"classes": [0, 1], "exchange": {0: 2, 1: 2}},
                "redirection": {"pool": 1},
            },
            "redirection.pool: got 1 embeddings for 2 forgotten classes",
        ),
    ],
)
def test_a_request_that_cannot_be_redirected_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        resolve(parse(UnlearnConfig, {**VALUES, **values}), {c: str(c) for c in range(4)})


def test_a_class_without_an_exchange_class_is_redirected_to_what_is_near() -> None:
    request = {"classes": [1], "without_exchange": True}
    outcome, _, saved = run(run_config(**deep(request=request)))
    assert outcome.after["exchange_fraction"] is None
    rest = run(run_config(**deep(request=request)), Checkpoint.from_files(saved[0]))[0]
    assert weights_digest(rest.trained) == weights_digest(outcome.trained)
    # the only neighbour is what the exchange class was
    assert weights_digest(run(run_config(**deep()))[0].trained) == weights_digest(outcome.trained)
    resolve(parse(UnlearnConfig, {**VALUES, "request": request}), {c: str(c) for c in range(4)})


def test_a_class_forgotten_earlier_is_neither_retained_nor_redirected() -> None:
    """Its label is no target of another's rows; a share of the retain rows holds it where the base has it."""
    request = {"classes": [1], "exchange": {1: 2, 0: 2}, "forgotten_earlier": [0]}
    config = run_config(**deep(request=request))
    inputs = run_inputs(config, dtype=torch.float64)
    state = open_state(inputs)
    assert state.redirect is not None
    assert (state.redirect.retained, dict(state.redirect.exchange)) == ([2, 3], {1: (2,)})
    rows = redirect_rows(inputs, state.redirect, next(inputs.streams.retain(0)), 1)
    assert set(rows.held[3][1].y.tolist()) <= {2, 3, 4}


def test_named_samples_alone_are_shown_as_others_of_their_class() -> None:
    config = run_config(**deep(request={"sample_ids": "ids.txt", "sample_classes": [1]}))
    inputs = run_inputs(config)
    state = open_state(inputs)
    assert state.redirect is not None and state.redirect.exchange == {}
    assert list(state.redirect.siblings) == [1] and state.redirect.near == {}
    rows = redirect_rows(inputs, state.redirect, next(inputs.streams.retain(0)), 1)
    assert len(rows.held) == 3 and set(rows.adversarial.target_y.tolist()) == {1}
    log = train_step(inputs, state, next(inputs.streams.retain(0)), 1)
    assert 0 < float(log["loss/keep"]) < 1e3


def test_samples_that_stand_in_for_a_class_forgotten_earlier_are_redirected_like_its_rows() -> None:
    """And not shown as others of their class, which is gone."""
    request = {"classes": [0], "exchange": {0: 2, 1: 3}, "forgotten_earlier": [1]}
    inputs = run_inputs(run_config(**deep(request=request)))  # whose rows to forget are of class 1
    state = open_state(inputs)
    assert state.redirect is not None and state.redirect.siblings == {}
    assert dict(state.redirect.exchange) == {1: (3,)} and set(state.redirect.retained) == {2, 3}
    rows = redirect_rows(inputs, state.redirect, next(inputs.streams.retain(0)), 1)
    assert set(rows.adversarial.target_y.tolist()) == {3} and rows.adversarial.target_x0 is None


def test_a_label_aimed_beyond_its_exchange_class_leads_there_whatever_the_embedding() -> None:
    aimed = {"method.label_init": "exchange", "method.label_extrapolation": 0.5}
    inputs = run_inputs(run_config(**deep(**aimed)), dtype=torch.float64)
    table = inputs.model.label_table()
    state = open_state(inputs)
    assert state.redirect is not None and state.teacher is not None
    state.teacher.aim({1: (2,)}, {1: 0.5})
    rows = redirect_rows(inputs, state.redirect, next(inputs.streams.retain(0)), 1)
    (_, retain), (_, shown), (_, own), (_, others), *_ = rows.held
    for part in (shown, own, rows.adversarial):
        assert set(part.target_y.tolist()) == {1}
    for part in (retain, others):
        assert 1 not in part.target_y.tolist()
    answers = state.teacher.predict_aimed(own, own.target_y).value
    with torch.no_grad():
        table[1] = table[2] + 0.5 * (table[2] - table[1])
        wanted = inputs.model.predict(inputs.model.net, own.x0, own.y, own.noise).value
    assert torch.equal(answers, wanted) and not torch.equal(
        answers, state.teacher.predict(own, own.target_y).value
    )
    # and a run that begins there goes on where it stopped
    config = run_config(**deep(**aimed))
    whole, _, saved = run(config)
    again, _, _ = run(config, Checkpoint.from_files(saved[0]))
    assert weights_digest(whole.trained) == weights_digest(again.trained)


@pytest.mark.parametrize("method", [name for name, line in METHODS.items() if not line.own])
def test_every_method_has_its_meaning_under_the_embeddings(method: str) -> None:
    logs, named, _ = steps_of(deep(**{"method.name": method}), 2)
    assert len(logs) == 2 and all(torch.isfinite(p).all() for p in named.values())
