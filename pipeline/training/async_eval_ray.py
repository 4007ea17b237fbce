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
from collections.abc import Mapping
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


class RayEvaluator:
    """An `Evaluator` on Ray tasks. A check that fails, dies or takes too long comes back as None."""

    def __init__(self, arguments: Mapping[str, Any], config: UnlearnConfig) -> None:
        import ray

        evaluate = config.evaluate
        self._timeout_s = evaluate.timeout_s
        self._task = ray.remote(_check).options(
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
        self._sent: deque[tuple[int, Any, float]] = deque()

    def send(self, step: int, weights: Mapping[str, Tensor]) -> None:
        on_cpu = {name: value.cpu() for name, value in weights.items()}
        self._sent.append((step, self._task.remote(*self._arguments, step, on_cpu), time.monotonic()))

    def take(self, wait_s: float) -> tuple[int, Check | None] | None:
        import ray

        if not self._sent:
            return None
        step, pending, sent_at = self._sent[0]
        ready, _ = ray.wait([pending], timeout=wait_s)
        if not ready and time.monotonic() - sent_at < self._timeout_s:
            return None
        self._sent.popleft()
        if not ready:
            log.warning(
                "the check of step %d took longer than %.0f s (evaluate.timeout_s)", step, self._timeout_s
            )
            ray.cancel(pending, force=True)
            return step, None
        try:
            return step, ray.get(pending)
        except ray.exceptions.RayError as error:
            log.warning("the check of step %d failed: %s", step, " ".join(str(error).split())[-500:])
            return step, None


def _check(settings: str, sources: dict[str, Any], step: int, weights: dict[str, Tensor]) -> Check:
    inputs = _inputs(settings, json.dumps(sources, sort_keys=True))
    named = select(inputs.model, inputs.config.trainable)
    on_device = {name: value.to(inputs.device) for name, value in weights.items()}
    with standing_in(named, on_device):
        return check(inputs, step, final=False)


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
