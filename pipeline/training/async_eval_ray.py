"""Checks as Ray tasks: the first rank sends the weights of a checked step off and trains on while they are
judged elsewhere.

Plain tasks of the first rank, not Ray Train's validation hook: that one starts a task when its controller
next polls, has one under way at a time, and hands the outcome to nobody but `get_all_reported_checkpoints`;
the loop, which has to decide on it, would wait for two polls where it waits for none.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pipeline import config as configuration
from pipeline.config import UnlearnConfig
from pipeline.data.partition import find_partition
from pipeline.training.periodic_eval import Check, check, standing_in
from pipeline.training.step import Inputs
from pipeline.training.worker_inputs import Sources, assemble
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.parameters import select

SOURCES = ("lake_uri", "partition_uri", "model_uri", "judge_uri", "subject")
RETRIES = 2  # of a check, after a worker's death or an error

log = logging.getLogger(__name__)


@dataclass
class Sent:
    """A check on its way. `outcomes` gives None when it has begun, then the check; times are of this
    process's monotonic clock."""

    step: int
    outcomes: Any  # of object references
    sent_at: float
    started_at: float | None = None


class RayEvaluator:
    """An `Evaluator` on Ray tasks. A check that fails, dies, takes longer than `evaluate.timeout_s` from its
    start or waits longer than `train.wait_s` for a place comes back as None."""

    def __init__(self, arguments: Mapping[str, Any], config: UnlearnConfig) -> None:
        import ray

        evaluate = config.evaluate
        self._timeout_s, self._wait_s = evaluate.timeout_s, config.train.wait_s
        self._task = ray.remote(_check).options(
            num_returns="streaming",
            num_cpus=evaluate.cpus,
            num_gpus=evaluate.gpus,
            max_retries=RETRIES,
            retry_exceptions=True,
            name="check",
        )
        # further spaces are for the first check and the last
        subject = arguments["subject"] | {"features": {}}
        self._arguments = (
            configuration.dump(config),
            {name: arguments[name] for name in SOURCES} | {"subject": subject},
        )
        self._sent: deque[Sent] = deque()

    def send(self, step: int, weights: Mapping[str, Tensor]) -> None:
        on_cpu = {name: value.cpu() for name, value in weights.items()}
        outcomes = self._task.remote(*self._arguments, step, on_cpu)
        self._sent.append(Sent(step, outcomes, time.monotonic()))

    def take(self, wait_s: float) -> tuple[int, Check | None] | None:
        import ray

        if not self._sent:
            return None
        sent, until = self._sent[0], time.monotonic() + wait_s
        try:
            if sent.started_at is None and ray.wait([sent.outcomes], timeout=wait_s)[0]:
                ray.get(next(sent.outcomes))
                sent.started_at = time.monotonic()
            left = max(0.0, until - time.monotonic())
            if sent.started_at is not None and ray.wait([sent.outcomes], timeout=left)[0]:
                outcome = ray.get(next(sent.outcomes))
                self._sent.popleft()
                return sent.step, outcome
        except ray.exceptions.RayError as error:
            log.warning("the check of step %d failed: %s", sent.step, " ".join(str(error).split())[-500:])
            self._sent.popleft()
            return sent.step, None
        since, limit, key = sent.started_at, self._timeout_s, "evaluate.timeout_s"
        if since is None:  # it waits for a place
            since, limit, key = sent.sent_at, self._wait_s, "train.wait_s"
        if time.monotonic() - since < limit:
            return None
        log.warning("the check of step %d took longer than %.0f s (%s)", sent.step, limit, key)
        self._sent.popleft()
        ray.cancel(sent.outcomes, force=True)
        return sent.step, None


def _check(
    settings: str, sources: dict[str, Any], step: int, weights: dict[str, Tensor]
) -> Iterator[Check | None]:
    """None at once, which says that it has begun, then the check of these weights."""
    yield None
    inputs = _inputs(settings, json.dumps(sources, sort_keys=True))
    named = select(inputs.model, inputs.config.trainable)
    on_device = {name: value.to(inputs.device) for name, value in weights.items()}
    with standing_in(named, on_device):
        yield check(inputs, step, final=False)


@lru_cache(maxsize=1)
def _inputs(settings: str, sources: str) -> Inputs:
    """Model, judge and subject stay in the process, which serves one check after the other."""
    import yaml

    config, where = configuration.parse(UnlearnConfig, yaml.safe_load(settings)), json.loads(sources)
    torch.set_num_threads(config.train.threads)
    partition = find_partition(where["partition_uri"])
    assert partition is not None
    return assemble(
        config,
        partition,
        Sources.of(where),
        collectives=Collectives(),
        device=torch.device("cuda" if config.evaluate.gpus and torch.cuda.is_available() else "cpu"),
    )
