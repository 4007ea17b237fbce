"""The folder of a run as the loop fills it: metrics.jsonl, checkpoints/, trained.safetensors and, last,
outcome.json. Written by one rank; where outcome.json lies, training is over. Checkpoints are written beside
the training, by one thread."""

import logging
from collections.abc import Callable, Container, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from models import weights
from pipeline import storage
from pipeline.runtime import metrics_log
from pipeline.training import checkpoint as checkpoints
from pipeline.training.checkpoint import Checkpoint, Part
from pipeline.training.loop import Outcome
from pipeline.unlearning.collectives import Collectives

METRICS, OUTCOME, TRAINED, CHECKPOINTS = "metrics.jsonl", "outcome.json", "trained.safetensors", "checkpoints"
log = logging.getLogger(__name__)
PORTIONS = "portions"  # of a long measure before or after that is under way


def latest_checkpoint(run_uri: str, collectives: Collectives, *, sharded: bool = False) -> Checkpoint | None:
    """Where the run under `run_uri` goes on, the same on every rank; None at its beginning. Of a sharded run
    this rank's part, what lies beyond it being none of the run any more."""
    uri = storage.join(run_uri, CHECKPOINTS)
    if sharded:
        return checkpoints.latest_part(uri, Part(collectives.rank, collectives.world_size), collectives)
    return checkpoints.same_start(checkpoints.latest(uri), collectives)


class CheckpointWriter:
    """Writes checkpoints under `uri`, or this rank's `part` of each, by one thread beside the training."""

    def __init__(self, uri: str, part: Part | None = None) -> None:
        self._uri, self._part = uri, part
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[str] | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Have `checkpoint`, whose tensors and progress nobody changes any more, written. Waits for the one
        before, and raises what that ran into."""
        self.wait()
        self._writing = self._thread.submit(checkpoints.commit, self._uri, checkpoint, self._part)

    def wait(self) -> None:
        """Until the latest checkpoint is whole. Raises what its writing ran into."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            log.info("checkpoint %s", writing.result())


def checkpoint_part(run_uri: str, collectives: Collectives) -> CheckpointWriter:
    """What writes this rank's part of the checkpoints of a sharded run."""
    part = Part(collectives.rank, collectives.world_size)
    return CheckpointWriter(storage.join(run_uri, CHECKPOINTS), part)


class RunFolder:
    """Open at `start`: records of what was trained beyond it are dropped. `observe` sees every record that
    stays or is made."""

    def __init__(
        self,
        run_uri: str,
        start: Checkpoint | None,
        observe: Callable[[metrics_log.Record], None] = lambda record: None,
        writer: CheckpointWriter | None = None,
    ) -> None:
        self.uri, self._observe = run_uri, observe
        self._metrics = storage.join(run_uri, METRICS)
        records: list[metrics_log.Record] = []
        if start is not None:
            records = up_to(start.progress["step"], metrics_log.read(self._metrics), set(start.pending))
        for record in records:
            observe(record)
        self._writer = metrics_log.Writer(self._metrics, records)
        self._checkpoints = writer or CheckpointWriter(storage.join(run_uri, CHECKPOINTS))

    def record(self, line: metrics_log.Record) -> None:
        self._writer.write(line)
        self._observe(line)

    def save(self, checkpoint: Checkpoint) -> None:
        """Have `checkpoint` written while the training goes on; the records first: a checkpoint is not ahead
        of them."""
        self._writer.flush()
        self._checkpoints.save(checkpoint)

    def close(self, last: int | None = None) -> None:
        """Write out the latest checkpoint and the records, those up to step `last` where a later one does not
        count."""
        self._checkpoints.wait()
        self._writer.flush()
        if last is not None:
            metrics_log.Writer(self._metrics, up_to(last, metrics_log.read(self._metrics))).flush()


def leave_outcome(run_uri: str, outcome: Outcome, plain: Mapping[str, Any]) -> None:
    """The trained weights and, last, `plain`: the outcome as plain data."""
    storage.write_bytes(storage.join(run_uri, TRAINED), weights.to_bytes(outcome.trained))
    storage.write_json(storage.join(run_uri, OUTCOME), dict(plain))


def up_to(
    step: int, lines: list[metrics_log.Record], pending: Container[int] = ()
) -> list[metrics_log.Record]:
    """The records of a run that is taken back to `step`, with the checks of `pending` steps still to be made.

    What the base model measures stays in any case.
    """
    return [
        line
        for line in lines
        if (line["kind"] == "evaluation" and line["step"] == 0)
        or (line["step"] <= step and not (line["kind"] == "evaluation" and line["step"] in pending))
    ]
