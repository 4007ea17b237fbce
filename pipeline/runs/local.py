"""A run without Ray: the same loop in this process, or in those that torchrun starts.

torchrun --nproc-per-node 2 -m pipeline.runs.local --config jobs/configs/quickstart.yaml [--set a.b=c ...]

As many workers train as there are processes, gloo between CPUs and NCCL between GPUs. In Python:

    run = local.unlearn(config)
    run.model.sample(labels=torch.tensor([1]), seeds=[0], cfg_scale=2.0, steps=20)

Nothing is registered: the weights, metrics.jsonl and result.json lie under the run's folder.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from models import weights
from models.generative import GenerativeModel
from models.judge import Judge
from pipeline import config as configuration
from pipeline import lease, storage
from pipeline.config import UnlearnConfig
from pipeline.config.commands import command, config_for
from pipeline.data.partition import Partition
from pipeline.data.partition_ray import build_partition
from pipeline.errors import InputError
from pipeline.evaluation import stored_result
from pipeline.runs import final_evaluation, preflight, run_weights
from pipeline.runs.preflight import REQUEST, SETTINGS, Prepared
from pipeline.runs.result import RESULT, base_metrics_of, keep_base_metrics, result_of
from pipeline.runs.unlearn import lease_of, leave_model, with_own_weights
from pipeline.runtime import command_line, metrics_log
from pipeline.training.loop import Hooks
from pipeline.training.loop import unlearn as unlearn_loop
from pipeline.training.run_folder import (
    OUTCOME,
    TRAINED,
    RunFolder,
    checkpoint_part,
    latest_checkpoint,
    leave_outcome,
)
from pipeline.training.step import Inputs
from pipeline.training.worker_inputs import Sources, assemble
from pipeline.unlearning.collectives import Collectives, NonFiniteError

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, kw_only=True)
class LocalRun:
    """What a run left: `result` as result.json has it, `model` with the trained weights, and its judge."""

    uri: str
    result: dict[str, Any]
    model: GenerativeModel
    judge: Judge


def unlearn(config: UnlearnConfig) -> LocalRun:
    """Check the request, build its partition, train, measure and leave the result under the run's folder.

    In a process group all ranks call this together. A run id that is finished returns its result, an
    interrupted one goes on. Raises `InputError` for what cannot be served or is being done by another
    process, `RuntimeError` for a run that breaks down numerically.
    """
    started, collectives = time.perf_counter(), Collectives()
    config = _on_these_workers(config, collectives.world_size)
    prepared = _same_run(preflight.check(config))
    storage.require_writable(config.storage)
    with _held(prepared) as own:
        return _unlearn(prepared, collectives, own, started)


def _unlearn(
    prepared: Prepared, collectives: Collectives, own: lease.Lease | None, started: float
) -> LocalRun:
    """The run itself, which no other process does meanwhile; `own` is the first rank's."""
    prepared = _first_then_others(lambda: with_own_weights(prepared))
    partition, inputs = open_run(prepared, collectives)
    if not storage.exists(storage.join(prepared.run_uri, RESULT)):
        if collectives.rank == 0:
            storage.write_text(
                storage.join(prepared.run_uri, REQUEST), configuration.dump(prepared.config.request)
            )
            storage.write_text(storage.join(prepared.run_uri, SETTINGS), preflight.settings_text(prepared))
        outcome = _outcome(prepared, partition, inputs)
        if own:
            own.require()
            _, digest = leave_model(prepared)
            seconds = time.perf_counter() - started
            result = result_of(prepared, outcome, digest, partition.digest, seconds)
            storage.write_json(storage.join(prepared.run_uri, RESULT), result)
        _wait()
    trained = storage.read_bytes(storage.join(prepared.run_uri, TRAINED))
    inputs.model.net.load_state_dict(dict(weights.from_bytes(trained, TRAINED)), strict=False)
    inputs.model.net.eval()
    result = stored_result.read(storage.join(prepared.run_uri, RESULT))
    return LocalRun(uri=prepared.run_uri, result=result, model=inputs.model, judge=inputs.subject.judge)


def open_run(prepared: Prepared, collectives: Collectives | None = None) -> tuple[Partition, Inputs]:
    """The partition of a checked run, built in this process by the first rank, and what its steps are
    computed from."""
    collectives = collectives or Collectives()
    config = run_weights.fitted(prepared.config, prepared.choice)
    near = prepared.subject["neighbours"]
    partition = _first_then_others(
        lambda: build_partition(config, prepared.lake, near, prepared.stand_ins, task_bytes=sys.maxsize)
    )
    device = torch.device(f"cuda:{_local_rank()}" if torch.cuda.is_available() else "cpu")
    inputs = assemble(config, partition, Sources(**prepared.sources), collectives=collectives, device=device)
    return partition, inputs


def train(
    inputs: Inputs,
    run_uri: str,
    *,
    before: dict[str, Any] | None = None,
    observe: Callable[[metrics_log.Record], None] = lambda record: None,
    setup_s: float = 0.0,
) -> dict[str, Any]:
    """The loop, from the base weights or the last checkpoint under `run_uri`; leaves metrics, checkpoints,
    weights and, last, the outcome there. Returns the outcome as plain data, or {"failed": why} of a run that
    breaks down numerically: it would break again however often it is tried.

    `before`: the base model's metrics where they are known. `observe` sees every record, those of an earlier
    attempt first. `setup_s` is noted beside the loop's own seconds.
    """
    started, collectives = time.perf_counter(), inputs.collectives
    shard = inputs.config.train.shard
    start = latest_checkpoint(run_uri, collectives, sharded=shard)
    part = checkpoint_part(run_uri, collectives) if shard else None
    folder, hooks = None, Hooks(before=before, save=part.save if part else None)
    if collectives.rank == 0:
        folder = RunFolder(run_uri, start, observe, writer=part)
        hooks = Hooks(before=before, record=folder.record, save=folder.save)
    try:
        outcome = unlearn_loop(inputs, start, hooks=hooks)
    except NonFiniteError as error:
        return {"failed": str(error)}
    finally:
        if folder:
            folder.close()
        elif part:
            part.wait()
    plain = outcome.to_dict(collectives.world_size)
    plain["seconds"] = {"setup": setup_s, "loop": time.perf_counter() - started}
    if folder:
        leave_outcome(run_uri, outcome, plain)
    return plain


def main(argv: list[str] | None = None) -> int:
    """The command line: one rank of as many as torchrun started, or the only one."""

    def run(config: UnlearnConfig, dry_run: bool) -> None:
        if dry_run:
            preflight.check(_on_these_workers(config, Collectives().world_size))
            return
        local = unlearn(config)
        if Collectives().rank == 0:
            forgotten = local.result["after"]["forget_fraction"]
            print(f"steps {local.result['steps']}, forget_fraction {forgotten and forgotten['value']}")
            print(f"result {storage.join(local.uri, RESULT)}")

    if "RANK" in os.environ:
        if torch.cuda.is_available():
            torch.cuda.set_device(_local_rank())
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        return command_line.main(UnlearnConfig, run, __doc__ or "", argv)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _on_these_workers(config: UnlearnConfig, world_size: int) -> UnlearnConfig:
    """`config` for as many workers as there are processes. Raises `InputError` where they do not fit it."""
    if final_evaluation.wanted(config):
        evaluate = command("evaluate", config_for("evaluate", config.lake), config.storage)
        raise InputError(
            "evaluate: got metrics, reference or attack_suite, which need Ray's workers; leave them out and"
            f" run `{evaluate}` afterwards"
        )
    if config.train.fewest <= world_size <= config.train.most and config.train.fewest < config.train.most:
        return config  # elastic: the same to the bit at any number
    values = config.model_dump(mode="json")
    return configuration.parse(UnlearnConfig, values | {"train": values["train"] | {"workers": world_size}})


def _outcome(prepared: Prepared, partition: Partition, inputs: Inputs) -> dict[str, Any]:
    """The outcome that lies under the run, or that of training it now."""
    uri = storage.join(prepared.run_uri, OUTCOME)
    if storage.exists(uri):
        return stored_result.read(uri)
    metrics_uri, before = base_metrics_of(prepared, partition.digest)
    _wait()
    outcome = train(inputs, prepared.run_uri, before=before)
    if "failed" in outcome:
        raise RuntimeError(outcome["failed"])
    if before is None and inputs.collectives.rank == 0:
        keep_base_metrics(metrics_uri, outcome, prepared.run_uri)
    return outcome


@contextmanager
def _held(prepared: Prepared) -> Iterator[lease.Lease | None]:
    """Context: the first rank holds the run's lease for all; where it is refused, every rank is."""
    with ExitStack() as stack:
        own, refusal = None, [""]
        if not dist.is_initialized() or dist.get_rank() == 0:
            try:
                own = stack.enter_context(lease_of(prepared))
            except lease.LeaseHeldError as error:
                refusal = [str(error)]
        if dist.is_initialized():
            dist.broadcast_object_list(refusal)
        if refusal[0]:
            raise lease.LeaseHeldError(refusal[0])
        yield own


def _same_run(prepared: Prepared) -> Prepared:
    """`prepared` under the run id that the first rank chose."""
    if not dist.is_initialized():
        return prepared
    names = [prepared.run_id]
    dist.broadcast_object_list(names)
    return replace(prepared, run_id=names[0], run_uri=storage.join(prepared.config.storage, "runs", names[0]))


def _first_then_others(make: Callable[[], ResultT]) -> ResultT:
    """`make()` on the first rank, then on the others, which find in storage what it made."""
    if dist.is_initialized() and dist.get_rank() > 0:
        dist.barrier()
        return make()
    first = make()
    _wait()
    return first


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


if __name__ == "__main__":
    sys.exit(main())
