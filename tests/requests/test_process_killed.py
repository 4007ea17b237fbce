"""kill -9 of processors at random moments, and two at once: nothing is lost, nothing is answered twice."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretended import PretendedModel

from pipeline import storage
from pipeline.config import parse
from pipeline.config.ledger import LedgerConfig
from pipeline.config.process import ProcessConfig
from pipeline.lease import LeaseHeldError
from pipeline.requests import ledger, process, submit

KILLS, SEED = 20, 5
SCOPES = {"r1": (1, 7), "r3": (3, 5), "r0": (0, 6), "r4": (4, 9), "r8": (8, 5)}
STEP_S = 0.03


def forked(function: Callable[[], Any]) -> int:
    """The pid of a process that calls `function` and ends; the modules are loaded already."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return pid


def answers(root: str) -> Counter[str]:
    return Counter(entry.request for entry in ledger.read(root).entries if entry.move == "answered")


def check(root: str, submitted: list[str]) -> None:
    """Whatever was killed when: the log verifies, every request is in it, and an answer is one that a
    registered version gives."""
    known = ledger.read(root)
    assert set(submitted) <= known.requests.keys()
    assert all(count == 1 for count in answers(root).values())
    versions = PretendedModel(root).versions()
    for request in known.requests.values():
        if request.version is not None:
            assert request.id in versions[request.version]["request_ids"]
    runs = [facts["run_id"] for facts in versions.values()]
    assert len(runs) == len(set(runs)), "one version a run"


def test_killed_at_random_moments(root: str, configured: Callable[..., LedgerConfig]) -> None:
    chance = random.Random(SEED)
    print("seed", SEED)
    config = parse(ProcessConfig, {"storage": root, "promote": "automatic"})
    scopes, submitted, killed = list(SCOPES.items())[1:], ["r1"], 0
    submit.submit(configured("r1", classes=[1], exchange={1: 7}))
    began = time.monotonic()
    process.process(config, PretendedModel(root, step_s=STEP_S), say=lambda _: None)
    undisturbed = time.monotonic() - began
    while killed < KILLS:
        if scopes and all(request.is_answered for request in ledger.read(root).requests.values()):
            name, (label, exchange) = scopes.pop(0)
            submit.submit(configured(name, classes=[label], exchange={label: exchange}))
            submitted.append(name)
        pid = forked(lambda: process.process(config, PretendedModel(root, step_s=STEP_S), say=lambda _: None))
        time.sleep(chance.random() * undisturbed)  # on a busy machine everything takes longer
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed += os.WIFSIGNALED(status)
        check(root, submitted)
    summary = process.process(config, PretendedModel(root), say=lambda _: None)
    check(root, submitted)
    assert not summary.alarms and answers(root) == Counter(submitted)
    assert {request.state for request in ledger.read(root).requests.values()} == {"closed"}
    assert not storage.exists(f"{root}/requests/plan.json")


def test_two_at_once(root: str, configured: Callable[..., LedgerConfig], tmp_path: Path) -> None:
    config = parse(ProcessConfig, {"storage": root, "promote": "automatic"})
    submit.submit(configured("r1", classes=[1], exchange={1: 7}))

    def work(name: str) -> None:
        try:
            process.process(config, PretendedModel(root, step_s=0.05), say=lambda _: None)
            (tmp_path / name).write_text("worked")
        except LeaseHeldError as error:
            (tmp_path / name).write_text(f"told: {error}")

    pids = {name: forked(lambda name=name: work(name)) for name in "abc"}  # type: ignore[misc]
    for pid in pids.values():
        os.waitpid(pid, 0)
    texts = sorted((tmp_path / name).read_text() for name in pids)
    told, worked = [text for text in texts if "told" in text], [text for text in texts if text == "worked"]
    assert len(worked) == 1 and len(told) == 2
    assert all("held by process " in text for text in told)
    assert answers(root) == Counter(["r1"])
