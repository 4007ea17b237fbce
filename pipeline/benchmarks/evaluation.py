"""What a check beside the training costs the steps that it overlaps with, on the main job's step and its own
evaluation task.

One process takes steps on one thread; now and then the weights go to a Ray task that judges them on another
core. In turn, the same number of steps is taken while the check is under way and, before and after it, with
nothing else going on.
"""

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pipeline import config as configuration
from pipeline.config import BenchmarkConfig, UnlearnConfig

if TYPE_CHECKING:
    from pipeline.training.loop import Inputs
    from pipeline.training.periodic_eval import Evaluator

FEWEST = 3  # steps that a check must last for a round to count
KINDS = ("wall_seconds", "cpu_seconds")


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Seconds per step, alone and overlapped, medians over rounds; needs the lake and models of
    `evaluation.base` under `storage`."""
    import torch

    from pipeline.runtime import cluster_ray
    from pipeline.studies.comparison import assembled
    from pipeline.training.async_eval_ray import RayEvaluator

    settings = config.evaluation
    sets = {
        "storage": config.storage,
        "train.workers": 1,
        "train.threads": config.threads,
        "evaluate.samples": settings.samples,
    }
    unlearning = configuration.load(
        UnlearnConfig, settings.base, [f"{key}={value}" for key, value in sets.items()]
    )
    prepared, partition, inputs = assembled(unlearning)
    torch.set_num_threads(config.threads)
    cluster_ray.connect(2)
    try:
        evaluator = RayEvaluator({**prepared.sources, "partition_uri": partition.uri}, inputs.config)
        rounds = list(_rounds(inputs, evaluator, settings.rounds))
    finally:
        cluster_ray.disconnect()
    return {
        "benchmark": "evaluation",
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "rounds": len(rounds),
        "check_seconds": _median(one["check_seconds"] for one in rounds),
        "steps_overlapped": _median(one["steps"] for one in rounds),
        "alone": {kind: _median(one["alone"][kind] for one in rounds) for kind in KINDS},
        "overlapped": {kind: _median(one["overlapped"][kind] for one in rounds) for kind in KINDS},
        "overlapped_over_alone": {
            kind: _median(one["overlapped"][kind] / one["alone"][kind] for one in rounds) for kind in KINDS
        },
        "alone_over_alone": _median(one["after_over_before"] for one in rounds),
        "setting": settings.model_dump() | {"threads": config.threads},
    }


def _rounds(inputs: "Inputs", evaluator: "Evaluator", rounds: int) -> Iterator[dict[str, Any]]:
    """Each round: steps alone, steps for as long as a check is under way, as many alone again. The first
    check, which starts the task's process, is not measured; one that lasts less than a few steps makes no
    round."""
    from pipeline.unlearning.parameters import select

    step = _step_of(inputs)
    weights = {name: p.detach().clone() for name, p in select(inputs.model, inputs.config.trainable).items()}
    evaluator.send(0, weights)
    step()
    while evaluator.take(1.0) is None:
        pass
    length = 2 * FEWEST
    for index in range(1, rounds + 1):
        before = _burst(step, range(length))
        sent = time.perf_counter()
        evaluator.send(index, weights)
        sending = time.perf_counter() - sent
        during = _burst(step, iter(lambda: evaluator.take(0.0) is None, False))
        length = max(FEWEST, during["steps"])
        after = _burst(step, range(length))
        if during["steps"] >= FEWEST:
            yield {
                "steps": during["steps"],
                "check_seconds": during["steps"] * during["wall_seconds"] + sending,
                "alone": {kind: (before[kind] + after[kind]) / 2 for kind in KINDS},
                "overlapped": during | {"wall_seconds": during["wall_seconds"] + sending / during["steps"]},
                "after_over_before": after["wall_seconds"] / before["wall_seconds"],
            }


def _burst(step: Callable[[], object], turns: Iterable[object]) -> dict[str, Any]:
    """Seconds per step of one step for each of `turns`."""
    started, cpu_started = time.perf_counter(), time.process_time()
    steps = sum(1 for _ in turns if step() or True)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return {
        "steps": steps,
        "wall_seconds": seconds / max(1, steps),
        "cpu_seconds": cpu_seconds / max(1, steps),
    }


def _step_of(inputs: "Inputs") -> Callable[[], object]:
    """The main job's step, one after the other, over the batches of the partition again and again."""
    from pipeline.training.loop import train_step
    from pipeline.unlearning.losses import Teacher
    from pipeline.unlearning.methods.table import METHODS
    from pipeline.unlearning.optimizer import adamw
    from pipeline.unlearning.parameters import select

    config, named = inputs.config, select(inputs.model, inputs.config.trainable)
    teacher = Teacher(inputs.model, named) if config.method.targets == "teacher" else None
    optimiser = adamw(list(named.values()), lr=1e-6, weight_decay=0.0)
    batches, numbers = itertools.cycle(list(inputs.retain(0))), itertools.count(1)
    inputs.model.net.train()

    def step() -> object:
        number = next(numbers)
        return train_step(
            inputs,
            next(batches),
            number,
            number,
            method=METHODS[config.method.name],
            named=named,
            teacher=teacher,
            optimiser=optimiser,
        )

    return step


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 5)
