"""The unlearning loop on Ray Train's workers, as without Ray; where asked for, Ray Data reads the lanes.

A worker that starts, for the first time or after any death, goes on from the last checkpoint that lies under
the run.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from models.generative import GenerativeModel
from pipeline import config as configuration
from pipeline import storage
from pipeline.config import UnlearnConfig
from pipeline.data import retain_stream_ray
from pipeline.data.batch import Batch
from pipeline.data.partition import find_partition
from pipeline.evaluation.context import EvalContext
from pipeline.evaluation.portions import Portions
from pipeline.runtime import metrics_log
from pipeline.runtime.startup_timeline import mark, reached, spans
from pipeline.runtime.stop_request import STOP, Terminated, stopping
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.launch_ray import PREEMPTIONS, launch, worker_setup
from pipeline.training.loop import Hooks, Interrupted, Outcome, unlearn
from pipeline.training.periodic_eval import Elsewhere
from pipeline.training.run_folder import (
    PORTIONS,
    RunFolder,
    checkpoint_part,
    latest_checkpoint,
    leave_outcome,
)
from pipeline.training.sample_grids import draw_grids
from pipeline.training.step import Inputs
from pipeline.training.worker_inputs import Sources, assemble
from pipeline.unlearning.collectives import NonFiniteError
from pipeline.unlearning.parameters import select

START_UP = "timings/start-up.json"  # seconds from the submission, or the driver's process, to the first step
NOTES = ".train"  # Ray Train's own folder under the run

log = logging.getLogger(__name__)


def train(
    config: UnlearnConfig,
    *,
    lake_uri: str,
    partition_uri: str,
    model_uri: str,
    judge_uri: str,
    subject: dict[str, Any],
    run_uri: str,
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run the loop on the workers, or continue it; returns `Outcome` as plain data. Weights and grids lie
    under `run_uri`.

    `before`: the base model's metrics, where they were taken already with these settings.
    """
    arguments = {  # Ray Train shows them in its dashboard, and no worker talks to the tracking server
        "config": config.model_dump(mode="json", exclude={"tracking": {"uri"}}),
        "lake_uri": lake_uri,
        "partition_uri": partition_uri,
        "model_uri": model_uri,
        "judge_uri": judge_uri,
        "subject": subject,
        "before": before,
        "run_uri": run_uri,
    }
    mark("partition_ready")
    arguments["milestones"] = reached()
    with stopping(run_uri, config.train.grace_s) as stop:
        for _ in range(PREEMPTIONS):
            outcome = launch(_worker, arguments, config.train, storage_uri=run_uri, name=NOTES)
            if "interrupted" not in outcome and not stop.asked:
                storage.remove(storage.join(run_uri, NOTES))
                return outcome
            if stop.asked or storage.exists(stop.uri):
                raise Terminated()
            print(f"  {outcome['interrupted']}; going on from there", flush=True)
    raise RuntimeError(
        f"the workers were taken away {PREEMPTIONS} times; the run goes on when it is submitted again"
    )


def _worker(arguments: dict[str, Any]) -> dict[str, Any] | None:
    mark("worker_started")
    config, run_uri = configuration.parse(UnlearnConfig, arguments["config"]), arguments["run_uri"]
    run_id = run_uri.rsplit("/", 1)[-1]
    place = worker_setup(config.train, config.partition.lanes, run_id)
    if place is None:
        return None
    device, collectives = place
    partition = find_partition(arguments["partition_uri"])
    assert partition is not None

    def by_ray(start: int) -> Iterator[Batch]:
        return retain_stream_ray.retain_stream(partition, collectives.rank, collectives.world_size, start)

    # What the run is computed from, and where it goes on.
    inputs = assemble(
        config,
        partition,
        Sources.of(arguments),
        collectives=collectives,
        device=device,
        retain=by_ray if config.partition.reader == "ray" else None,
    )
    start = latest_checkpoint(run_uri, collectives, sharded=config.train.shard)
    mark("assembled")
    after = "from the base model" if start is None else f"after step {start.progress['step']}"
    log.info("starting %s", after)

    # Run it.
    hooks, close = _hooks(inputs, arguments, run_id, start)
    base = _movable(inputs.model, config.trainable) if collectives.rank == 0 else {}
    try:
        outcome = unlearn(inputs, start, hooks=hooks)
    except NonFiniteError as error:
        # on every rank at once, and again however often it is tried: not a failure to retry
        close(None)
        return {"failed": str(error)}
    except Interrupted as stopped:
        close(None)
        log.info("%s", stopped)
        return {"interrupted": str(stopped)}
    close(outcome.steps)

    # Leave what came of it.
    plain = outcome.to_dict(collectives.world_size)
    if collectives.rank == 0:
        storage.remove(storage.join(run_uri, PORTIONS))
        _draw_grids(inputs.model, base, outcome, config, inputs.subject, run_uri)
        leave_outcome(run_uri, outcome, plain)
    return plain


def _hooks(
    inputs: Inputs, arguments: dict[str, Any], run_id: str, start: Checkpoint | None
) -> tuple[Hooks, Callable[[int | None], None]]:
    """All that reaches out of the loop, and what to call at its end with the last step that counts."""
    from pipeline.training.async_eval_ray import RayEvaluator
    from pipeline.training.preemption_ray import Interruption
    from pipeline.training.timings_ray import Quality, Timings

    config, rank, run_uri = inputs.config, inputs.collectives.rank, arguments["run_uri"]
    started_at = None if start is None else start.progress["step"]
    timings = Timings(run_uri, run_id, rank, inputs.collectives.world_size, started_at)
    beside = config.evaluate.asynchronous

    def portions(name: str) -> Portions:
        batch = f"{config.evaluate.batch}"  # images sampled together: other ones are other portions
        return Portions(storage.join(run_uri, PORTIONS, f"{name}-{batch}"))

    part = checkpoint_part(run_uri, inputs.collectives) if config.train.shard else None
    if rank > 0:
        hooks = Hooks(
            before=arguments["before"],
            timing=timings,
            save=part.save if part else None,
            evaluator=Elsewhere() if beside else None,
            portions=portions,
            interrupted=Interruption(None),
        )

        def close_part(last: int | None) -> None:
            timings.flush()
            if part:
                part.wait()

        return hooks, close_part

    folder, quality = RunFolder(run_uri, start, writer=part), Quality(run_id)

    def record(line: metrics_log.Record) -> None:
        folder.record(line)
        quality(line)
        if line["kind"] == "evaluation" and line["step"] == 0:
            mark("base_measured")
        elif started_at is None and "first_step" not in reached():
            mark("first_step")
            here = {name: when for name, when in reached().items() if name not in ("submitted", "process")}
            storage.write_json(storage.join(run_uri, START_UP), spans({**arguments["milestones"], **here}))

    def close(last: int | None) -> None:
        timings.flush()
        # what was trained while the deciding check was under way does not count
        folder.close(last if beside else None)

    hooks = Hooks(
        before=arguments["before"],
        record=record,
        timing=timings,
        save=folder.save,
        evaluator=RayEvaluator(arguments, config) if beside else None,
        portions=portions,
        interrupted=Interruption(storage.join(run_uri, STOP)),
    )
    return hooks, close


def _movable(model: GenerativeModel, trainable: str) -> dict[str, torch.Tensor]:
    """A copy of what a run may change of the network: the trained parameters and all buffers. It waits in the
    host's memory."""
    return {
        name: value.detach().to("cpu", copy=True)
        for name, value in (*select(model, trainable).items(), *model.net.named_buffers())
    }


def _draw_grids(
    model: GenerativeModel,
    base: dict[str, torch.Tensor],
    outcome: Outcome,
    config: UnlearnConfig,
    subject: EvalContext,
    run_uri: str,
) -> None:
    """The sample grids before and after. The base model's images are sampled here, of its part that `base`
    holds, so that the first step need not wait for them."""
    model.net.eval()
    trained = {**_movable(model, config.trainable), **outcome.trained}
    for moment, values in (("before", base), ("after", trained)):
        with torch.no_grad():
            for name, value in (*model.net.named_parameters(), *model.net.named_buffers()):
                if name in values:
                    value.copy_(values[name])
        draw_grids(model, config, subject, storage.join(run_uri, "samples", f"{moment}.safetensors"))
