"""Parts of a running job are killed at random steps: what comes out is what would have come out anyway.

`python tests/faults/kill_many.py` does the same many times over, on a cluster, the head included.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3_servers
from kill_many import fill, undisturbed
from nodes import ENDED, PROGRAMS, SMALL, Cluster, Process, Run, command, environment, free_port, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.faults]
SEED = random.randrange(1000)  # in every message of a test that fails
STEPS = SMALL["optim.max_steps"]
BESIDE = {"evaluate.asynchronous": True}  # the checks are tasks: what is under way is lost and made again


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A short path: Ray makes sockets below it."""
    made = Path(tempfile.mkdtemp(prefix="rf-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def storage(folder: Path) -> str:
    fill(str(folder / "storage"))
    return str(folder / "storage")


@pytest.fixture(scope="module")
def wanted(storage: str, folder: Path) -> str:
    """The digest of the run that nobody touches."""
    return undisturbed(storage, folder, **BESIDE)


def status_of(storage: str, run_id: str) -> str:
    """What MLflow says of the run."""
    with sqlite3.connect(f"file:{storage}/mlflow.db?mode=ro", uri=True) as database:
        query = (
            "select status from runs join tags on runs.run_uuid = tags.run_uuid where tags.key = 'run_id' and"
            " tags.value = ?"
        )
        (status,) = database.execute(query, (run_id,)).fetchone()
    return str(status)


def test_worker_killed_driver_killed_told_to_stop_and_still_the_same(
    storage: str, folder: Path, wanted: str
) -> None:
    rng, run = random.Random(SEED), Run(storage, "chain")
    at = sorted(rng.sample(range(1, STEPS - 2), 3))
    log = folder / "chain.log"

    def begin() -> Process:
        return Process(command(storage, "chain", **BESIDE), log, environment())

    def reaches(process: Process, step: int) -> None:
        wait_until(f"step {step} (seed {SEED})", lambda: run.step >= step or process.code is not None)
        assert process.code is None, process.said[-2000:]

    first = begin()
    try:
        reaches(first, at[0])
        os.kill(rng.choice(first.below("RayTrainWorker")), signal.SIGKILL)
        reaches(first, at[1])
        os.kill(first.pid, signal.SIGKILL)
    finally:
        first.end()
    assert run.result is None
    beyond = run.step + 1  # steps are short: the first may have come further than where it was killed
    second = begin()
    try:
        reaches(second, max(at[2], beyond))
        os.kill(second.pid, signal.SIGTERM)
        assert second.popen.wait(60) == 143, second.said[-2000:]
    finally:
        second.end()
    assert run.result is None and status_of(storage, "chain") == "KILLED" and "told to stop" in second.said
    third = begin()
    try:
        assert third.popen.wait(300) == 0, third.said[-2000:]
    finally:
        third.end()
    assert run.result is not None and run.result["weights_digest"] == wanted, (
        f"seed {SEED}, killed after {at}"
    )
    assert status_of(storage, "chain") == "FINISHED"
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "step"] == list(range(1, STEPS + 1))
    assert [r["step"] for r in records if r["kind"] == "evaluation"] == list(
        range(0, STEPS + 1, SMALL["evaluate.every"])
    )
    for rank in range(2):
        taken = [
            json.loads(line)
            for line in (run.folder / "timings" / f"rank-{rank}.jsonl").read_text().splitlines()
        ]
        assert taken[-1]["step"] == STEPS and taken[-1]["run_id"] == "chain" and taken[-1]["forward"] > 0


def test_store_and_tracker_away_for_twenty_seconds_change_nothing(
    folder: Path, storage: str, wanted: str
) -> None:
    """Storage in a bucket and an MLflow server, both killed at a random step and back after 20 s."""
    rclone, rng = s3_servers.Rclone(folder / "s3"), random.Random(SEED)
    for made in ("lakes", "models"):
        shutil.copytree(Path(storage) / made, folder / "s3" / "bucket" / "root" / made)
    port, run = free_port(), Run(str(folder / "s3" / "bucket" / "root"), "outage")
    said = environment(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{rclone.port}",
        AWS_ACCESS_KEY_ID=s3_servers.KEY,
        AWS_SECRET_ACCESS_KEY=s3_servers.SECRET,
        AWS_DEFAULT_REGION="us-east-1",
    )

    def tracker() -> Process:
        where = (
            "--backend-store-uri",
            f"sqlite:///{folder}/tracker.db",
            "--artifacts-destination",
            str(folder / "artifacts"),
        )
        options = ("--host", "127.0.0.1", "--port", str(port), "--workers", "1")
        started = Process(
            [str(PROGRAMS / "mlflow"), "server", *where, *options], folder / "tracker.log", environment()
        )
        wait_until("the tracker", lambda: answers(f"http://127.0.0.1:{port}/health"))
        return started

    rclone.start()
    mlflow = tracker()
    changes = {**BESIDE, "tracking.uri": f"http://127.0.0.1:{port}"}
    driver = Process(command("s3://bucket/root", "outage", **changes), folder / "outage.log", said)
    try:
        at = rng.randrange(1, STEPS - 4)
        wait_until(f"step {at} (seed {SEED})", lambda: run.step >= at or driver.code is not None)
        assert driver.code is None, driver.said[-2000:]
        rclone.stop()
        mlflow.end()
        time.sleep(20)
        rclone.start()
        mlflow = tracker()
        assert driver.popen.wait(400) == 0, driver.said[-3000:]
    finally:
        driver.end()
        mlflow.end()
        rclone.stop()
    assert run.result is not None and run.result["weights_digest"] == wanted, f"seed {SEED}, away after {at}"
    with sqlite3.connect(f"file:{folder}/tracker.db?mode=ro", uri=True) as database:
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
        logged = database.execute(
            "select distinct step from metrics where key = 'loss/keep' order by step"
        ).fetchall()
    assert [step for (step,) in logged] == list(range(1, STEPS + 1)), "no metric was lost"


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
        return True
    return False


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    with Cluster(folder / "c", raylets=2) as made:
        yield made


ELASTIC = {
    "train.workers": [1, 2],
    "train.cpus_per_worker": 1,
    "train.resize_s": 2.0,
    # checks of seconds: the run should not be over before a node is back, however fast the machine
    "evaluate.retain_samples": 600,
}


def worlds_of(run: Run) -> list[int]:
    """How many workers took the steps so far, a number for each stretch of steps."""
    path = run.folder / "timings" / "rank-0.jsonl"
    taken = [json.loads(line)["world"] for line in path.read_text().splitlines()] if path.exists() else []
    return [
        world_size for index, world_size in enumerate(taken) if index == 0 or world_size != taken[index - 1]
    ]


def test_a_submitted_job_outlives_a_node_and_takes_one_that_returns_and_is_stopped_and_goes_on(
    cluster: Cluster, storage: str, wanted: str
) -> None:
    """Two workers on two raylets; one dies, the other worker goes on alone until one comes; `ray job stop`;
    submitted again, it ends."""
    run = Run(storage, "elastic")

    def reaches(what: str, job: str, happened: Callable[[], bool]) -> None:
        wait_until(what, lambda: happened() or cluster.status(job) in ENDED)
        assert cluster.status(job) not in ENDED, cluster.ray("job", "logs", job).stdout[-3000:]

    cluster.submit("elastic-1", command(storage, "elastic", **ELASTIC))
    reaches("steps of two", "elastic-1", lambda: run.step >= 4)
    gone = cluster.raylets.pop()
    gone.end()
    at = run.step
    reaches("steps alone", "elastic-1", lambda: run.step > at)
    cluster.start_raylet()
    reaches("two workers again", "elastic-1", lambda: len(cluster.pids("RayTrainWorker")) == 2)
    at = run.step
    reaches("steps of two again", "elastic-1", lambda: run.step > at)
    assert cluster.ray("job", "stop", "elastic-1").returncode == 0
    assert cluster.status("elastic-1") == "STOPPED", cluster.ray("job", "logs", "elastic-1").stdout[-3000:]
    assert status_of(storage, "elastic") == "KILLED" and run.result is None
    assert (
        "told to stop: waiting for the workers' checkpoint" in cluster.ray("job", "logs", "elastic-1").stdout
    )

    cluster.submit("elastic-2", command(storage, "elastic", **ELASTIC))
    wait_until("the end", lambda: cluster.status("elastic-2") in ENDED, every_s=1.0)
    assert cluster.status("elastic-2") == "SUCCEEDED", cluster.ray("job", "logs", "elastic-2").stdout[-3000:]
    assert worlds_of(run) == [2, 1, 2]
    assert run.result is not None and run.result["weights_digest"] == wanted, (
        "the number of workers changes nothing"
    )


def test_a_cluster_without_what_was_asked_for_is_named_and_given_up(cluster: Cluster, storage: str) -> None:
    driver = cluster.driver(
        "gpus.log", command(storage, "gpus", **{"train.gpus_per_worker": 1, "train.wait_s": 2.0})
    )
    try:
        assert driver.popen.wait(200) == 1, driver.said[-2000:]
    finally:
        driver.end()
    said = driver.said
    assert (
        "room for 0 of 2 workers (0.4 CPU, 1 GPU each)" in said
        and "missing 2 GPU" in said
        and "waiting up to 2 s" in said
    )
    assert "gave up after 2 s" in said.splitlines()[-1] and status_of(storage, "gpus") == "FAILED"


@pytest.mark.skipif(
    shutil.which("unshare") is None or os.geteuid() != 0,
    reason="only root may give a process its own view of a folder",
)
def test_storage_that_a_node_cannot_see_is_refused(cluster: Cluster, storage: str) -> None:
    blind = cluster.start_raylet(hidden=storage)
    driver = cluster.driver("blind.log", command(storage, "blind"))
    try:
        assert driver.popen.wait(200) == 2, driver.said[-2000:]
    finally:
        driver.end()
        cluster.raylets.remove(blind)
        blind.end()
    last = driver.said.splitlines()[-1]
    assert (
        last.startswith(f"error: storage: '{storage}' is a folder of this machine that ")
        and "s3://bucket/prefix" in last
    )
    assert not (Path(storage) / "runs" / "blind").exists() and not list(Path(storage).glob(".shared-*"))
