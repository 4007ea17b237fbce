"""Registers and promotes a model again and again, killed (SIGKILL) at a random moment each time; prints what
was found, as JSON lines.

Run by test_registry_killed.py in a process of its own: it forks after MLflow's slow import, and each child
opens its own stores.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import mlflow.pyfunc
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
import torch
from tracking_samples import result_json, write_model

from pipeline import storage
from pipeline.config import RegistryConfig, Tracking, parse
from pipeline.governance import promotion, verification
from pipeline.tracking import registry
from pipeline.tracking.mlflow_runs import Tracker, client

NAME = "killed"


def work(root: str, number: int) -> None:
    """Register run `number` and make its version champion."""
    run_id = f"run-{number}"
    folder = storage.join(root, "weights", run_id)
    digest = write_model(folder, seed=number)
    result = result_json(run_id, digest)
    storage.write_json(storage.join(root, "runs", run_id, "result.json"), result)
    storage.write_text(storage.join(root, "runs", run_id, "config.yaml"), f"seed: {number}\n")
    with Tracker(tracking=Tracking(model_name=NAME), storage_root=root, run_id=run_id) as tracker:
        version = registry.register(tracker, folder=folder, image_shape=(8, 8, 1), result=result)
    promotion.promote(configured(root, version))


def found(root: str) -> dict[str, Any]:
    """Where the aliases are, which versions there are, and whether log and certificate hold."""
    history = promotion.history(configured(root))
    made = client(Tracking(model_name=NAME), root, create=False)
    aliases = {alias: int(version) for alias, version in made.get_registered_model(NAME).aliases.items()}
    return {
        "aliases": aliases,
        "versions": sorted(int(version.version) for version in registry.versions(made, NAME)),
        "moved": history.now,
        "verified": verification.verify(configured(root, aliases["champion"]))[0][:11],
    }


def configured(root: str, version: int | None = None) -> RegistryConfig:
    return parse(
        RegistryConfig,
        {"storage": root, "tracking": {"model_name": NAME}, **({"version": version} if version else {})},
    )


def forked(call: Callable[[], Any]) -> tuple[int, int]:
    """Start `call` in a child; its pid and the pipe its result comes through."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            os.write(writing, json.dumps(call()).encode())
            os._exit(0)
        except BaseException as error:
            os.write(writing, json.dumps(f"{type(error).__name__}: {error}").encode())
            os._exit(1)
    os.close(writing)
    return pid, reading


def finished(child: tuple[int, int]) -> Any:
    with os.fdopen(child[1], "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child[0], 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"a child failed: {said.decode()}")
    return json.loads(said)


def main(root: str, rounds: int, seed: int) -> None:
    torch.set_num_threads(1)
    chance = random.Random(seed)
    finished(forked(lambda: work(root, 1)))  # makes the database
    started = time.monotonic()
    finished(forked(lambda: work(root, 2)))
    whole = time.monotonic() - started
    for number in range(3, 3 + rounds):
        share = (number - 3 + chance.random()) / rounds  # at random, in every fifth of the time that it takes
        child = forked(lambda number=number: work(root, number))  # type: ignore[misc]
        time.sleep(share * whole)
        os.kill(child[0], signal.SIGKILL)
        os.close(child[1])
        killed = os.waitstatus_to_exitcode(os.waitpid(child[0], 0)[1]) == -signal.SIGKILL
        after = finished(forked(lambda: found(root)))
        finished(forked(lambda number=number: work(root, number)))  # type: ignore[misc]
        again = finished(forked(lambda: found(root)))
        print(
            json.dumps(
                {"number": number, "share": round(share, 3), "killed": killed, "after": after, "again": again}
            ),
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
