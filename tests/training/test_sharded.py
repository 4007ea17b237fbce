"""Two ranks that share the weights (`train.shard`) take the steps of two that hold them whole; a run that was
killed goes on to the same weights."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from distributed import run_world
from runs import FEW_REDIRECTED, run_config, run_inputs
from tiny import relative

from models.generative import build, dit_description
from models.weights import weights_digest
from pipeline import storage
from pipeline.config import sharding
from pipeline.errors import InputError
from pipeline.runs.memory_plan import MemoryPlan
from pipeline.training import checkpoint as checkpoints
from pipeline.training.checkpoint import STATE, Part
from pipeline.training.loop import Hooks, Outcome, unlearn
from pipeline.training.run_folder import CHECKPOINTS, checkpoint_part, latest_checkpoint
from pipeline.training.step import open_state, train_step
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.methods.table import METHODS
from pipeline.unlearning.sharding import ShardedTeacher

DEPTH: dict[str, Any] = {
    "method.depth": "weights",
    "redirection": FEW_REDIRECTED,
    "evaluate.to_the_end": True,
}
STEPS: dict[str, dict[str, Any]] = {
    "finetune": {"method.name": "finetune", "method.targets": "data"},
    "exchange, averaged": {"method.name": "exchange", "method.targets": "data", "optim.ema": 0.7},
    "surgery, micro-batches": {"method.name": "surgery", "optim.micro_batch": 2},
    "uno by differences": {"method.name": "uno", "method.penalty": 0.7, "method.hvp": "fd_central"},
    "uno_s by one-sided ones": {"method.name": "uno_s", "method.hvp": "fd_forward"},
    "ascent": {"method.name": "ascent"},
    "ascent in turn": {"method.name": "ascent_descent", "method.project": True, "method.targets": "data"},
    "a subset": {"method.name": "surgery_ascent", "trainable": "labels_and_adaln:1"},
    "two optimisers": {"method.name": "erasediff", "optim.separate_moments": True, "method.targets": "data"},
    "siss": {"method.name": "siss"},
    "esd": {"method.name": "esd", "method.sampler_steps": 3},
    "depth weights": {"method.name": "exchange", **DEPTH},
}
IN_FLOAT32 = ("surgery, micro-batches", "uno by differences")


def steps_of(changes: dict[str, Any], shard: bool, dtype: torch.dtype) -> dict[str, Any]:
    """Three steps on this rank: the first gradient (as the optimiser's moment has it) and the averaged
    weights after the last, whole, and the elements of the average that this rank holds."""
    train = {"workers": 2, "shard": shard}
    inputs = run_inputs(run_config(**{"trainable": "all", "train": train, **changes}), dtype=dtype)
    state = open_state(inputs)
    if state.sharded:
        state.sharded.release()

    def whole(values: dict[str, torch.Tensor]) -> torch.Tensor:
        tensors = state.sharded.gather(values) if state.sharded else values
        return torch.cat([value.flatten() for value in tensors.values()])

    gradient = torch.zeros(0)
    for iteration, batch in zip((1, 2, 3), inputs.streams.retain(0), strict=False):
        train_step(state.inputs, state, batch, iteration)
        if iteration == 1:
            gradient = whole({name: state.optimizer.state[p]["exp_avg"] for name, p in state.named.items()})
    held = sum(value.numel() for value in state.average.values.values())
    return {"gradient": gradient, "weights": whole(state.average.values), "held": held}


def every_step() -> dict[str, Any]:
    return {
        f"{name} {bits}": [steps_of(changes, shard, dtype) for shard in (False, True)]
        for name, changes in STEPS.items()
        for bits, dtype in ((64, torch.float64), (32, torch.float32))
        if bits == 64 or name in IN_FLOAT32
    }


class Killed(BaseException):
    """Nothing in between catches it, as nothing catches SIGKILL."""


RUN: dict[str, Any] = {
    "trainable": "all",
    "method.name": "uno_s",
    "method.hvp": "fd_central",
    "method.label_init": "exchange",
    "optim.ema": 0.5,
}


def run_at(uri: str, shard: bool, killed_after: int | None = None) -> Outcome | None:
    """The run that lies under `uri`, from its last checkpoint; None where it is killed."""
    inputs = run_inputs(run_config(**RUN, train={"workers": 2, "shard": shard}))
    start = latest_checkpoint(uri, inputs.collectives, sharded=shard)
    part = checkpoint_part(uri, inputs.collectives)

    def timing(seconds: dict[str, Any]) -> None:
        if seconds["step"] == killed_after:
            raise Killed

    try:
        return unlearn(inputs, start, hooks=Hooks(save=part.save if shard else None, timing=timing))
    except Killed:
        return None
    finally:
        part.wait()


def a_killed_run(folder: str) -> dict[str, Any]:
    """A whole run and one that was killed while its second checkpoint was written."""
    collectives, killed = Collectives(), f"{folder}/killed"
    outcomes = [run_at(f"{folder}/replicated", False), run_at(f"{folder}/whole", True)]
    assert run_at(killed, True, killed_after=5) is None
    collectives.largest(0)  # both have stopped
    if collectives.rank == 1:
        storage.remove(storage.join(killed, CHECKPOINTS, "00000004", Part(1, 2).file(STATE)))
    collectives.largest(0)
    start = latest_checkpoint(killed, collectives, sharded=True)
    outcomes.append(run_at(killed, True))
    assert start is not None and None not in outcomes
    return {
        "goes on at": start.iteration,
        "trained": [dict(outcome.trained) for outcome in outcomes if outcome],
        "after": [outcome.after["forget_fraction"]["value"] for outcome in outcomes if outcome],
        "best": checkpoints.read(f"{folder}/whole/{CHECKPOINTS}/00000006").best_weights,
        "files": storage.listing(f"{folder}/whole/{CHECKPOINTS}/00000006"),
    }


def held_between_steps() -> dict[str, Any]:
    """Bytes that a rank holds after a step: as planned and as they lie there."""
    train = {"workers": 2, "shard": True}
    config = run_config(**{"trainable": "all", "train": train, "method.name": "surgery"})
    described = dit_description("DiT-tiny", shape=(1, 4, 4), num_classes=4, class_names=["x"] * 4)
    inputs = replace(run_inputs(config), model=build(described))
    state = open_state(inputs)
    assert state.sharded and isinstance(state.teacher, ShardedTeacher)
    state.sharded.release()
    train_step(state.inputs, state, next(inputs.streams.retain(0)), 1)
    networks = (state.inputs.model.net, state.teacher.net, inputs.model.net)
    shards = [getattr(p, "to_local", lambda p=p: p)() for net in networks for p in net.parameters()]
    moments = [m[key] for m in state.optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    need = MemoryPlan(config, described).need("exact")
    return {
        "weights": [need.weights, sum(t.nbytes for t in (*shards, *state.average.values.values()))],
        "moments": [need.optimiser, sum(t.nbytes for t in moments)],
    }


def ranks(folder: str) -> dict[str, Any]:
    return {"steps": every_step(), "run": a_killed_run(folder), "held": held_between_steps()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_world(2, ranks, str(tmp_path_factory.mktemp("sharded")))


def test_a_step_is_that_of_whole_weights(world: list[dict[str, Any]]) -> None:
    for name, (whole, sharded) in world[0]["steps"].items():
        held = sharded["held"] + world[1]["steps"][name][1]["held"]
        assert held == whole["held"] and sharded["held"] < 0.51 * held, name
        close, after = (1e-12, 1e-11) if name.endswith("64") else (1e-5, 1e-3)  # Adam divides by their size
        assert whole["gradient"].norm() > 0 and relative(sharded["gradient"], whole["gradient"]) < close, name
        assert relative(sharded["weights"], whole["weights"]) < after, name
        assert torch.equal(sharded["weights"], world[1]["steps"][name][1]["weights"]), name


def test_a_killed_run_goes_on_to_the_same_weights(world: list[dict[str, Any]]) -> None:
    first, second = world[0]["run"], world[1]["run"]
    assert first["goes on at"] == second["goes on at"] == 2, "the last that both ranks had written"
    replicated, whole, continued = first["trained"]
    assert weights_digest(continued) == weights_digest(whole)
    assert all(relative(whole[name], value) < 1e-2 for name, value in replicated.items())
    assert len({*first["after"], *second["after"]}) == 1
    assert weights_digest(first["best"]) == weights_digest(whole), "its parts put together"
    assert second["trained"][1:] == [{}, {}], "the first rank has them"
    assert first["files"] == [
        *(f"checkpoint-{rank}-of-2.{suffix}" for rank in (0, 1) for suffix in ("json", "safetensors")),
    ]


def test_the_memory_plan_knows_what_a_rank_holds(world: list[dict[str, Any]]) -> None:
    for rank in world:
        for name, (planned, held) in rank["held"].items():
            assert 0.97 < planned / held < 1.03, (name, planned, held)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.workers": [1, 2]}, r"train.shard: got train.workers \[1, 2\]; expected a fixed number"),
        ({"train.workers": 1}, "train.shard: got train.workers 1; expected a fixed number of 2 or more"),
        (
            {"method.name": "uno", "method.penalty": 0.1},
            "train.shard: got method.hvp exact for uno, .*; expected method.hvp fd_central",
        ),
        ({"method.name": "salun"}, "train.shard: got method.name salun, which makes vectors"),
        ({"method.label_extrapolation": 0.5}, "train.shard: got method.label_extrapolation 0.5; expected 0"),
        ({"evaluate.asynchronous": True}, "train.shard: got evaluate.asynchronous true; expected false"),
        ({"train.compile": True}, "train.shard: got train.compile true; expected false"),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_config(**{"train": {"workers": 2, "shard": True}, "method.name": "exchange", **changes})


def test_every_method_of_the_table_is_tried_or_refused() -> None:
    tried = {changes["method.name"] for changes in STEPS.values()}
    assert tuple(name for name, method in METHODS.items() if method.vectors) == sharding.MAKES_VECTORS
    assert tried | {*sharding.MAKES_VECTORS} == {*METHODS}
