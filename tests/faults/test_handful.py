"""A handful of kills at random steps on one machine, by `make faults`. `kill_many.py` does more: nodes, the
head, what they depend on.

What comes out is compared with the same loop in two plain processes that know nothing of Ray and that nobody
disturbs.
"""

import json
import os
import random
import signal
from pathlib import Path

import pytest
from distributed import run_world
from nodes import SMALL, Process, Run, command, environment, wait_until
from untrained import fill

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.faults]
SEED = random.randrange(1000)  # in every message of a test that fails
STEPS = SMALL["optim.max_steps"]


def undisturbed(run_uri: str) -> str:
    """On each of two ranks: the digest of the weights that the run at `run_uri` should have come to."""
    import torch
    import yaml

    from models.weights import weights_digest
    from pipeline import storage
    from pipeline.config import UnlearnConfig, parse
    from pipeline.data.partition import find_partition
    from pipeline.runs.preflight import check
    from pipeline.training.loop import unlearn
    from pipeline.training.worker_inputs import Sources, assemble
    from pipeline.unlearning.collectives import Collectives

    prepared = check(
        parse(UnlearnConfig, yaml.safe_load(storage.read_bytes(storage.join(run_uri, "config.yaml"))))
    )
    digest = storage.read_json(storage.join(run_uri, "result.json"))["partition_digest"]
    partition = find_partition(storage.join(prepared.config.storage, "partitions", digest[:32]))
    assert partition is not None
    collectives = Collectives()
    inputs = assemble(
        prepared.config,
        partition,
        Sources(**prepared.sources),
        collectives=collectives,
        device=torch.device("cpu"),
    )
    return weights_digest({**prepared.base.state, **unlearn(inputs).trained})


def test_a_worker_and_the_driver_are_killed_and_nothing_is_lost(tmp_path: Path) -> None:
    storage, rng = str(tmp_path / "storage"), random.Random(SEED)
    fill(storage)
    run = Run(storage, "handful")
    at = sorted(rng.sample(range(1, STEPS - 20), 3))
    said = f"seed {SEED}, killed after steps {at}"

    seen: set[int] = set()

    def begin() -> Process:
        return Process(command(storage, "handful"), tmp_path / "log", environment())

    def worker_at(process: Process, step: int) -> int:
        """A worker's pid, once a group of which nobody was seen before has written a checkpoint of its own,
        of `step` or later."""
        alive: list[int] = []

        def there() -> bool:
            alive[:] = process.below("RayTrainWorker")
            return process.code is not None or (len(alive) == 2 and not seen & set(alive))

        wait_until(f"a new group ({said})", there, every_s=0.02)
        seen.update(alive)
        step = max(step, run.step + 1)
        wait_until(
            f"step {step} ({said})", lambda: process.code is not None or run.step >= step, every_s=0.02
        )
        assert process.code is None, f"{said}: {process.said[-2000:]}"
        return rng.choice(alive)

    first = begin()
    try:
        os.kill(worker_at(first, at[0]), signal.SIGKILL)
        os.kill(worker_at(first, at[1]), signal.SIGTERM)  # as where a node is taken away with notice
        worker_at(first, at[2])
        os.kill(first.pid, signal.SIGKILL)
    finally:
        first.end()
    assert run.result is None, said
    second = begin()
    try:
        assert second.popen.wait(300) == 0, f"{said}: {second.said[-2000:]}"
    finally:
        second.end()
    assert run.result is not None
    assert run_world(2, undisturbed, str(run.folder)) == [run.result["weights_digest"]] * 2, said
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "step"] == list(range(1, STEPS + 1)), said
    assert [r["step"] for r in records if r["kind"] == "evaluation"] == list(
        range(0, STEPS + 1, SMALL["evaluate.every"])
    ), said
    assert "going on from there" in first.said, "the worker that was told to go wrote a checkpoint first"
