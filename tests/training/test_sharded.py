"""Two ranks that share the weights (`train.shard`) take the steps of two that hold them whole."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed import run_world
from runs import run_config, run_inputs
from tiny import relative

from models.weights import weights_digest
from pipeline.training.loop import Hooks, Interrupted, unlearn
from pipeline.training.run_folder import CheckpointWriter, checkpoint_part, latest_checkpoint
from pipeline.training.step import open_state, train_step

ALL = {"trainable": "all", "train": {"workers": 2}, "optim.max_steps": 3, "partition": {"lanes": 4}}
STEPS: dict[str, dict[str, Any]] = {
    "finetune": {"method.name": "finetune"},
    "exchange, data, averaged": {"method.name": "exchange", "method.targets": "data", "optim.ema": 0.7},
    "surgery, micro-batches": {"method.name": "surgery", "optim.micro_batch": 2},
    "uno by differences": {"method.name": "uno", "method.penalty": 0.7, "method.hvp": "fd_central"},
    "a subset": {"method.name": "exchange", "trainable": "labels_and_adaln:1"},
    "erasediff, two optimisers": {"method.name": "erasediff", "optim.separate_moments": True},
}


def steps_of(changes: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Three steps on this rank: the averaged weights, whole, and what was logged."""
    inputs = run_inputs(run_config(**{**ALL, **changes}), dtype=dtype)
    state = open_state(inputs)
    if state.sharded:
        state.sharded.release()
    logs = []
    for iteration, batch in zip((1, 2, 3), inputs.streams.retain(0)):
        logs.append(train_step(state.inputs, state, batch, iteration))
    values = state.average.values
    held = sum(value.numel() for value in values.values())
    whole = state.sharded.gather(values) if state.sharded else values
    weights = torch.cat([value.flatten() for value in whole.values()])
    return {"weights": weights, "held": held, "logs": logs}


def both(dtype: torch.dtype, names: list[str]) -> dict[str, Any]:
    return {
        name: {
            shard: steps_of({**STEPS[name], "train": {"workers": 2, "shard": shard}}, dtype)
            for shard in (False, True)
        }
        for name in names
    }


def test_steps_are_those_of_whole_weights() -> None:
    for dtype, close, names in (
        (torch.float64, 1e-12, list(STEPS)),
        (torch.float32, 1e-5, ["surgery, micro-batches", "uno by differences"]),
    ):
        ranks = run_world(2, both, dtype, names)
        for name in names:
            whole, sharded = ranks[0][name][False], ranks[0][name][True]
            print(name, dtype, relative(sharded["weights"], whole["weights"]), sharded["held"], whole["held"])
            assert relative(sharded["weights"], whole["weights"]) < close, (name, dtype)
