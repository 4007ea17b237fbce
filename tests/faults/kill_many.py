"""Random kills in a row on a real cluster: python tests/faults/kill_many.py [--kills 20] [--seed 0]
[--victims worker,driver]

Every part of a job is killed by `kill -9` at random steps: a worker (`told`: by SIGTERM), a raylet, in whose
place a fresh one comes (`drained`: it is told to go, as a spot node is), the driver of the submitted job and
the head (a new one starts on the same ports, with new raylets); then the job is submitted again. A run that
ends is compared with an undisturbed one: the same weights digest, whatever was killed; one that ended with an
error goes on with the next submission. Between the kills a second driver is submitted under the same run id
(`twin`): one of the two does the work. Prints one JSON line a kill and a run and a summary; exit code 1 when
a digest differs, a run has not exactly one version or does not come to its end.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (0, 1, 2)]

from nodes import ENDED, SMALL, Cluster, Process, Run, called, command, environment, wait_until  # noqa: E402
from untrained import fill  # noqa: E402

from pipeline.config import Registry  # noqa: E402
from pipeline.tracking import registry  # noqa: E402

TWIN = "twin"  # a second driver of the run; nothing is killed
VICTIMS = ("worker", "told", "raylet", "drained", "driver", "head", TWIN)
SUBMISSIONS = 12  # of one run; a run that needs more has not survived


def undisturbed(storage: str, folder: Path, **changes: Any) -> str:
    """The weights digest of a run that nobody touches, on a local cluster of its own."""
    alone = Process(command(storage, "undisturbed", **changes), folder / "undisturbed.log", environment())
    try:
        alone.popen.wait(600)
        result = Run(storage, "undisturbed").result
        if result is None:
            raise RuntimeError(alone.said[-2000:])
        return str(result["weights_digest"])
    finally:
        alone.end()


class Submitted:
    """One run on the cluster, submitted again whenever all its jobs are gone before the end."""

    def __init__(self, cluster: Cluster, storage: str, run_id: str, **changes: Any) -> None:
        self.cluster, self.storage, self.run_id, self.changes = cluster, storage, run_id, changes
        self.run = Run(storage, run_id)
        self.submissions = 0
        self.jobs: list[str] = []  # that the cluster's head knows of

    @property
    def alive(self) -> bool:
        return any(self.cluster.status(job) not in ENDED for job in self.jobs)

    @property
    def drivers(self) -> list[int]:
        """The jobs' drivers, without the shells around them."""
        return [
            pid
            for pid in self.cluster.pids(f"run_id={self.run_id} ")
            if called(pid).startswith(sys.executable)
        ]

    def ensure(self) -> bool:
        """True when the job has ended with a result; else a job is at work afterwards."""
        if self.alive:
            return False
        if self.run.result is not None:
            return True
        if self.submissions >= SUBMISSIONS:
            said = self.cluster.ray("job", "logs", self.jobs[-1]).stdout if self.jobs else ""
            raise RuntimeError(f"{self.run_id} did not end after {SUBMISSIONS} submissions: {said[-1500:]}")
        self.submit()
        return False

    def submit(self) -> str:
        self.submissions += 1
        self.jobs.append(f"{self.run_id}-{self.submissions}")
        self.cluster.submit(self.jobs[-1], command(self.storage, self.run_id, **self.changes))
        return self.jobs[-1]

    @property
    def versions(self) -> int:
        """How many versions were registered for the run."""
        rows = registry.rows(Registry(model_name="dit-digits-unlearned"), self.storage)
        return sum(row[-1] == self.run_id for row in rows)

    def kill(self, victim: str, rng: random.Random) -> int | None:
        """Kill -9 one process of that kind, if there is one now; its pid. A twin is submitted instead."""
        assert self.cluster.head is not None
        if victim == TWIN:
            self.submit()
            return 0
        if victim in ("worker", "told"):
            pids = self.cluster.pids("RayTrainWorker")
        elif victim == "driver":
            pids = self.drivers
        else:
            pids = [node.pid for node in ([self.cluster.head] if victim == "head" else self.cluster.raylets)]
        if not pids:
            return None
        pid = rng.choice(sorted(pids))
        if victim in ("worker", "driver", "told"):
            os.kill(pid, signal.SIGTERM if victim == "told" else signal.SIGKILL)
        elif victim == "raylet":
            gone = next(node for node in self.cluster.raylets if node.pid == pid)
            self.cluster.raylets.remove(gone)
            gone.end()
            self.cluster.start_raylet()
        elif victim == "drained":
            going = next(node for node in self.cluster.raylets if node.pid == pid)
            self.cluster.raylets.remove(going)
            self.cluster.leaving.append(going)
            os.kill(pid, signal.SIGTERM)
            self.cluster.start_raylet()
        else:
            self.cluster.restart_head()  # the job's driver lives on it
            self.jobs = []
        return pid


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victims", default=",".join(VICTIMS))
    parser.add_argument("--steps", type=int, default=SMALL["optim.max_steps"])
    parser.add_argument(
        "--keep", action="store_true", help="leave logs and storage where they are and say where"
    )
    given = parser.parse_args()
    # leaving by it ends the cluster
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    rng, victims = random.Random(given.seed), given.victims.split(",")
    changes = {"optim.max_steps": given.steps, "train.max_failures": 10}
    folder = Path(tempfile.mkdtemp(prefix="rk-", dir="/tmp"))  # short: Ray makes sockets below it
    storage = str(folder / "storage")
    kills, twins, wrong, runs = 0, 0, 0, 0
    try:
        fill(storage)
        wanted = undisturbed(storage, folder, **changes)
        with Cluster(folder / "c", raylets=2) as cluster:
            while kills < given.kills:
                runs += 1
                job = Submitted(cluster, storage, f"run-{runs}", **changes)
                while not job.ensure():
                    # soon: there is another kill after it
                    at = min(job.run.step + rng.randrange(9), given.steps - 2)
                    wait_until(
                        f"step {at}",
                        lambda job=job, at=at: job.run.step > at or not job.alive,
                        timeout_s=600,
                        every_s=0.2,
                    )
                    time.sleep(rng.random())
                    if kills >= given.kills or not job.alive or job.run.step >= given.steps:
                        wait_until("the end", lambda job=job: not job.alive, timeout_s=600, every_s=0.5)
                        continue
                    victim = rng.choice(victims)
                    step = job.run.step
                    if job.kill(victim, rng) is not None:
                        kills += victim != TWIN
                        twins += victim == TWIN
                        line = {"kill": kills, "victim": victim, "run": job.run_id, "after_step": step}
                        print(json.dumps(line), flush=True)
                same = job.run.result["weights_digest"] == wanted
                wrong += not same or job.versions != 1
                line = {"run": job.run_id, "submissions": job.submissions, "same_digest": same}
                print(json.dumps(line | {"versions": job.versions}), flush=True)
    except (RuntimeError, TimeoutError) as error:
        print(json.dumps({"failed": str(error)[-1500:], "logs": str(folder)}), flush=True)
        given.keep = True
        return 1
    finally:
        if given.keep:
            print(folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"kills": kills, "twins": twins, "runs": runs, "wrong": wrong, "seed": given.seed}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
