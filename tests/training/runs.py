"""A whole unlearning run in memory: streams, judge and model of the smallest size, no Ray and no storage."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny import CLASSES, tiny_batch, tiny_dit, tiny_judge
from torch import nn

from pipeline.config import UnlearnConfig, parse
from pipeline.data.batch import Batch
from pipeline.data.cycle import Cycle
from pipeline.evaluation.context import EvalContext, EvalSpec
from pipeline.evaluation.feature_statistics import Moments
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.loop import Hooks, Outcome, unlearn
from pipeline.training.step import Inputs, Streams, open_state, train_step
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.noising import exchange_rows
from pipeline.unlearning.teacher import Teacher

FEW_REDIRECTED = {  # redirection.*, of depth weights
    "rows": 8,
    "label_rows": 4,
    "others_rows": 4,
    "near_rows": 4,
    "near_classes": 1,
    "pool": 4,
}
GOLDEN = Path(__file__).with_name("golden_losses.json")
GOLDEN_STEPS = 20
GOLDEN_RUNS: dict[str, dict[str, Any]] = {
    "finetune, data": {"method.name": "finetune", "method.targets": "data"},
    "exchange": {"method.name": "exchange"},
    "exchange, data": {"method.name": "exchange", "method.targets": "data"},
    "ascent": {"method.name": "ascent"},
    "ascent_descent": {"method.name": "ascent_descent"},
    "surgery_ascent": {"method.name": "surgery_ascent"},
    "surgery": {"method.name": "surgery"},
    "surgery, contrast": {"method.name": "surgery", "method.contrast": True},
    "uno": {"method.name": "uno", "method.penalty": 0.1},
    "uno_s": {"method.name": "uno_s"},
    "uno_s, data, primed, micro-batches": {
        "method.name": "uno_s",
        "method.targets": "data",
        "optim.moment_warmup_steps": 5,
        "optim.micro_batch": 4,
    },
    "esd": {"method.name": "esd"},
    "salun": {"method.name": "salun"},
    "sfr_on": {"method.name": "sfr_on", "method.fisher_rows": 5},
    "erasediff": {"method.name": "erasediff"},
    "siss": {"method.name": "siss"},
    "siss, named samples": {
        "method.name": "siss",
        "method.targets": "data",
        "request": {"sample_ids": "ids.txt"},
        "optim.separate_moments": True,
    },
    "selective_amnesia": {
        "method.name": "selective_amnesia",
        "method.replay_rows": 6,
        "method.fisher_rows": 2,
        "method.fisher_chunks": 5,
    },
}


def run_config(**changes: Any) -> UnlearnConfig:
    """A run of 6 steps on batches of 8, checked every second step, that never settles; dotted keys of
    `changes` replace settings.

    What the numbers depend on is spelled out: a new default changes no test.
    """
    values: dict[str, Any] = {
        "request": {"classes": [1], "exchange": {1: 2}},
        "method": {
            "targets": "teacher",
            "contrast": False,
            "null_fraction": 0.1,
            "share_noise": False,
        },
        "trainable": "labels_and_adaln:1",
        "partition": {"lanes": 4},
        "optim": {
            "batch_size": 8,
            "max_steps": 6,
            "lr": 1e-2,
            "moment_warmup_steps": 0,
            "warmup_steps": 0,
            "clip": 1.0,
            "ema": 0.0,
        },
        "evaluate": {
            "every": 2,
            "samples": 20,
            "retain_samples": 3,
            "final_samples": 100,
            "final_retain_samples": 3,
            "sampler_steps": 2,
            "final_sampler_steps": 2,
            "membership_noises": 2,
        },
        "gate": {"max_forget_fraction": 0.0},
        "train": {"workers": 1},
    }
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if name:
            values[section] = {**values.get(section, {}), name: value}
        else:
            values[section] = value
    own: dict[str, dict[str, Any]] = {
        "uno": {"penalty": 0.01},
        "uno_s": {"penalty": 0.01, "surgery_every": 2},
        "esd": {"eta": 3.0, "sampler_steps": 4},
        "salun": {"saliency": 0.5},
    }
    values["method"] = {**own.get(values["method"].get("name", "uno_s"), {}), **values["method"]}
    return parse(UnlearnConfig, values)


def run_inputs(config: UnlearnConfig, *, dtype: torch.dtype = torch.float32) -> Inputs:
    """The inputs of one rank. All streams are functions of the configuration."""
    collectives = Collectives(ordered=config.train.fewest < config.train.most)
    model, judge = tiny_dit(dtype=dtype), tiny_judge()
    retained = tiny_batch([0, 2, 3], each=7, seed=1, dtype=dtype)
    stream = Cycle(retained, config.seed, "retain")
    size, lanes = config.optim.batch_size, config.partition.lanes

    def retain(start: int) -> Iterator[Batch]:
        step = start
        while True:
            yield stream.take(step, size, lanes, collectives.rank, collectives.world_size)
            step += 1

    forget = tiny_batch([1], each=5, seed=2, dtype=dtype)
    named = config.request.sample_ids is not None
    heldout = tiny_batch([1], each=9, seed=4, dtype=dtype)
    subject = EvalContext(
        model=model,
        judge=judge,
        spec=EvalSpec(
            forgotten=tuple(config.request.forgotten_classes),
            exchange=config.request.exchange_classes,
            retained=(0, 1, 2, 3) if named else (0, 2, 3),
            neighbours=(2,),
            null_label=CLASSES,
            timesteps=1000,
            num_classes=CLASSES,
        ),
        rows=lambda labels, split: forget if split == "train" else heldout,
        real={"judge/real/moments/all": Moments.of(judge.features(retained.mean.float())).packed()},
        manifolds={},
    )
    shown = exchange_rows(tiny_batch([2], each=6, seed=3, dtype=dtype), config.request.exchange_classes)
    return Inputs(
        config=config,
        model=model,
        subject=subject,
        streams=Streams(
            retain=retain,
            forget=Cycle(forget, config.seed, "forget"),
            exchange=(
                Cycle(shown, config.seed, "exchange")
                if config.method.targets == "data" and config.request.exchange
                else None
            ),
        ),
        collectives=collectives,
        device=torch.device("cpu"),
        rows_of=lambda labels: tiny_batch(labels, each=6, seed=8, dtype=dtype),
    )


def run(
    config: UnlearnConfig, start: Checkpoint | None = None
) -> tuple[Outcome, list[dict[str, Any]], list[dict[str, bytes]]]:
    """What came of it, the records, and the checkpoints as files."""
    records: list[dict[str, Any]] = []
    saved: list[dict[str, bytes]] = []
    hooks = Hooks(record=records.append, save=lambda checkpoint: saved.append(checkpoint.to_files()))
    return unlearn(run_inputs(config), start, hooks=hooks), records, saved


def trained_on_this_rank(changes: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The trained weights of a run, in whatever world this process is part of."""
    return dict(run(run_config(**changes))[0].trained)


def steps_of(
    changes: dict[str, Any], steps: int
) -> tuple[list[dict[str, float | str]], dict[str, nn.Parameter], torch.optim.Optimizer]:
    """`steps` bare steps in float64, priming first: what they log, the parameters and the optimiser."""
    config = run_config(**changes)
    inputs = run_inputs(config, dtype=torch.float64)
    state = open_state(inputs)
    # the golden runs drop labels with either kind of target
    state = replace(state, teacher=state.teacher or Teacher(inputs.model, state.named))
    logs = []
    for iteration, batch in enumerate(inputs.streams.retain(0), start=1):
        if iteration - config.optim.moment_warmup_steps > steps:
            break
        logs.append(train_step(inputs, state, batch, iteration))
    return logs, state.named, state.optimizer


def golden_losses(changes: dict[str, Any]) -> dict[str, list[float]]:
    """The losses of the golden steps, by name."""
    logs, _, _ = steps_of(changes, GOLDEN_STEPS)
    found: dict[str, list[float]] = {}
    for log in logs:
        for name, value in log.items():
            if name.startswith("loss/"):
                found.setdefault(name, []).append(float(value))
    return found
