"""The unlearning loop on Ray Train's workers: streams by Ray Data, everything else as without Ray.

A worker that starts, for the first time or after any death, goes on from the last checkpoint that lies under
the run.
"""

import logging
from collections.abc import Container
from dataclasses import replace
from typing import Any

import torch

from models import weights
from models.generative import GenerativeModel
from pipeline import config as configuration
from pipeline import storage
from pipeline.config import UnlearnConfig
from pipeline.data import retain_stream_ray
from pipeline.data.lake import read_lake
from pipeline.data.partition import find_partition
from pipeline.evaluation.measure import Subject
from pipeline.runtime import metrics_log
from pipeline.runtime.startup_timeline import mark, reached, spans
from pipeline.runtime.stop_request import STOP, Terminated, stopping
from pipeline.training import checkpoint as checkpoints
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.launch_ray import PREEMPTIONS, launch, worker_setup
from pipeline.training.loop import Inputs, Interrupted, Outcome, unlearn
from pipeline.training.periodic_eval import Elsewhere
from pipeline.training.sample_grids import draw_grids
from pipeline.training.worker_inputs import assemble
from pipeline.unlearning.collectives import NonFiniteError
from pipeline.unlearning.parameters import select

METRICS, OUTCOME, TRAINED, CHECKPOINTS = "metrics.jsonl", "outcome.json", "trained.safetensors", "checkpoints"
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

    `before` is what was measured of the base model earlier, with these settings; without it it is measured
    now.
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
    config = configuration.parse(UnlearnConfig, arguments["config"])
    run_uri = arguments["run_uri"]
    run_id = run_uri.rsplit("/", 1)[-1]
    place = worker_setup(config.train, config.partition.lanes, run_id)
    if place is None:
        return None
    device, collectives = place
    partition = find_partition(arguments["partition_uri"])
    assert partition is not None
    inputs = assemble(
        config,
        partition,
        model_uri=arguments["model_uri"],
        judge_uri=arguments["judge_uri"],
        described=arguments["subject"],
        heldout=lambda labels: read_lake(arguments["lake_uri"]).read(labels, "heldout"),
        retain=lambda start: retain_stream_ray.retain_stream(
            partition, collectives.rank, collectives.world, start
        ),
        collectives=collectives,
        device=device,
    )
    start = checkpoints.same_start(checkpoints.latest(storage.join(run_uri, CHECKPOINTS)), collectives)
    mark("assembled")
    log.info(
        "starting %s", "from the base model" if start is None else f"after step {start.progress['step']}"
    )
    inputs, close = _connected(inputs, arguments, run_id, start)
    base = _movable(inputs.model, config.trainable)
    try:
        outcome = unlearn(inputs, start)
    except NonFiniteError as error:
        # on every rank at once, and again however often it is tried: not a failure to retry
        close(None)
        return {"failed": str(error)}
    except Interrupted as stopped:
        close(None)
        log.info("%s", stopped)
        return {"interrupted": str(stopped)}
    plain = _plain(outcome, collectives.world)
    close(outcome.steps)
    if collectives.rank == 0:
        _finish(inputs.model, base, outcome, config, inputs.subject, run_uri, plain)
    return plain


def _connected(
    inputs: Inputs, arguments: dict[str, Any], run_id: str, start: Checkpoint | None
) -> tuple[Inputs, Any]:
    """`inputs` with everything that reaches out of the loop, and what to call at its end with the last step
    that counts."""
    from pipeline.training.async_eval_ray import RayEvaluator
    from pipeline.training.preemption_ray import Interruption
    from pipeline.training.timings_ray import Quality, Timings

    config, rank, run_uri = inputs.config, inputs.collectives.rank, arguments["run_uri"]
    begun = None if start is None else start.progress["step"]
    timings = Timings(run_uri, run_id, rank, inputs.collectives.world, begun)
    beside = config.evaluate.asynchronous
    if rank > 0:
        changed = replace(
            inputs,
            before=arguments["before"],
            timing=timings,
            evaluator=Elsewhere() if beside else None,
            interrupted=Interruption(None),
        )
        return changed, lambda last: timings.flush()

    uri = storage.join(run_uri, METRICS)
    writer = metrics_log.Writer(
        uri,
        [] if start is None else _up_to(start.progress["step"], metrics_log.read(uri), set(start.pending)),
    )
    quality = Quality(run_id)

    def record(line: metrics_log.Record) -> None:
        writer.write(line)
        quality(line)
        if line["kind"] == "evaluation" and line["step"] == 0:
            mark("base_measured")
        elif begun is None and "first_step" not in reached():
            mark("first_step")
            here = {name: when for name, when in reached().items() if name not in ("submitted", "process")}
            storage.write_json(storage.join(run_uri, START_UP), spans({**arguments["milestones"], **here}))

    def save(checkpoint: Checkpoint) -> None:
        writer.flush()
        folder = checkpoints.commit(storage.join(run_uri, CHECKPOINTS), checkpoint)
        log.info("checkpoint %s", folder)

    def close(last: int | None) -> None:
        timings.flush()
        writer.flush()
        # what was trained while the deciding check was under way does not count
        if last is not None and beside:
            metrics_log.Writer(uri, _up_to(last, metrics_log.read(uri))).flush()

    changed = replace(
        inputs,
        before=arguments["before"],
        record=record,
        timing=timings,
        save=save,
        evaluator=RayEvaluator(arguments, config) if beside else None,
        interrupted=Interruption(storage.join(run_uri, STOP)),
    )
    return changed, close


def _up_to(
    step: int, lines: list[metrics_log.Record], pending: Container[int] = ()
) -> list[metrics_log.Record]:
    """The records of a run that is taken back to `step`, with the checks of `pending` steps still to be made.

    What the base model measures stays in any case.
    """
    return [
        r
        for r in lines
        if (r["kind"] == "evaluation" and r["step"] == 0)
        or (r["step"] <= step and not (r["kind"] == "evaluation" and r["step"] in pending))
    ]


def _plain(outcome: Outcome, world: int) -> dict[str, Any]:
    return {
        "steps": outcome.steps,
        "kept_step": outcome.kept_step,
        "stopped": outcome.stopped,
        "missing_checks": list(outcome.missing),
        "world_size": world,
        "first_crossing_step": outcome.first_crossing_step,
        "settled_step": outcome.settled_step,
        "before": outcome.before,
        "after": outcome.after,
        "timing": outcome.timing,
    }


def _movable(model: GenerativeModel, trainable: str) -> dict[str, torch.Tensor]:
    """A copy of what a run may change of the network: the trained parameters and all buffers."""
    return {
        name: value.detach().clone()
        for name, value in (*select(model, trainable).items(), *model.net.named_buffers())
    }


def _finish(
    model: GenerativeModel,
    base: dict[str, torch.Tensor],
    outcome: Outcome,
    config: UnlearnConfig,
    subject: Subject,
    run_uri: str,
    plain: dict[str, Any],
) -> None:
    """Leave weights and grids under the run, `outcome.json` last: where it lies, training is over.

    The base model's images are drawn here, of its part that `base` holds, so that the first step need not
    wait for them.
    """
    storage.write_bytes(storage.join(run_uri, TRAINED), weights.to_bytes(outcome.trained))
    model.net.eval()
    now = {**_movable(model, config.trainable), **outcome.trained}
    for moment, values in (("before", base), ("after", now)):
        with torch.no_grad():
            for name, value in (*model.net.named_parameters(), *model.net.named_buffers()):
                if name in values:
                    value.copy_(values[name])
        draw_grids(model, config, subject, storage.join(run_uri, "samples", f"{moment}.safetensors"))
    storage.write_json(storage.join(run_uri, OUTCOME), plain)
