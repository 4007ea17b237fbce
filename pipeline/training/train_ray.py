"""The unlearning loop on Ray Train's workers: streams by Ray Data, checkpoints by Ray Train, everything else as without Ray."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from models import weights
from models.generative import GenerativeModel
from pipeline import config as configuration
from pipeline import records, storage
from pipeline.config import UnlearnConfig
from pipeline.data import stream_ray
from pipeline.data.lake import read_lake
from pipeline.data.partition import find_partition
from pipeline.data.rows import unit_to_pixels
from pipeline.evaluation.measure import Subject
from pipeline.evaluation.sampling import draw_images
from pipeline.training.assemble import assemble
from pipeline.training.checkpoint import STATE, TENSORS, Checkpoint
from pipeline.training.launch_ray import launch, worker_setup
from pipeline.training.loop import Outcome, unlearn
from pipeline.unlearning.collectives import NonFiniteError

METRICS, OUTCOME, TRAINED = "metrics.jsonl", "outcome.json", "trained.safetensors"
GRID_FORGET, GRID_RETAIN = 8, 4  # images of each label in the before and after grids


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
    """Run the loop on the workers, or continue it; returns `Outcome` as plain data. Weights and grids lie under `run_uri`.

    `before` is what was measured of the base model earlier, with these settings; without it it is measured now.
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
    return launch(_worker, arguments, config.train, storage_uri=run_uri, name="checkpoints")


def _worker(arguments: dict[str, Any]) -> dict[str, Any]:
    config = configuration.parse(UnlearnConfig, arguments["config"])
    device, collectives = worker_setup(config.train.threads)
    first, run_uri = collectives.rank == 0, arguments["run_uri"]
    start = _reported()

    partition = find_partition(arguments["partition_uri"])
    assert partition is not None
    inputs = assemble(
        config,
        partition,
        model_uri=arguments["model_uri"],
        judge_uri=arguments["judge_uri"],
        described=arguments["subject"],
        heldout=lambda labels: read_lake(arguments["lake_uri"]).read(labels, "heldout"),
        retain=lambda start: stream_ray.retain_stream(partition, collectives.rank, collectives.world, start),
        collectives=collectives,
        device=device,
    )

    metrics_uri = storage.join(run_uri, METRICS)
    kept = [r for r in records.read(metrics_uri) if start is not None and r["step"] <= start.progress["step"]] if first else []
    writer = records.Writer(metrics_uri, kept)
    if first:
        _draw_grids(inputs.model, config, inputs.subject, storage.join(run_uri, "samples", "before.safetensors"))

    def save(checkpoint: Checkpoint) -> None:
        import ray.train

        if not first:
            ray.train.report({})
            return
        writer.flush()
        with tempfile.TemporaryDirectory() as folder:
            for name, data in checkpoint.to_files().items():
                (Path(folder) / name).write_bytes(data)
            ray.train.report({"iteration": checkpoint.iteration}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    try:
        outcome = unlearn(replace(inputs, before=arguments["before"], record=writer.write if first else inputs.record, save=save), start)
    except NonFiniteError as error:  # on every rank at once, and again however often it is tried: not a failure to retry
        if first:
            writer.flush()
        return {"failed": str(error)}
    plain = _plain(outcome, collectives.world)
    if first:
        writer.flush()
        _finish(inputs.model, outcome, config, inputs.subject, run_uri, plain)
    return plain


def _reported() -> Checkpoint | None:
    """The last checkpoint that was reported, when this run continues one."""
    import ray.train

    found = ray.train.get_checkpoint()
    if found is None:
        return None
    with found.as_directory() as folder:
        return Checkpoint.from_files({name: (Path(folder) / name).read_bytes() for name in (TENSORS, STATE)})


@torch.no_grad()
def _draw_grids(model: GenerativeModel, config: UnlearnConfig, subject: Subject, uri: str) -> None:
    """Images of every judged label on fixed seeds, as uint8 (n, H, W, C) tensors named by label; drawn once."""
    if storage.exists(uri):
        return
    evaluate = config.evaluate
    grids: dict[str, torch.Tensor] = {}
    for labels, each in ((subject.forgotten, GRID_FORGET), (subject.retained, GRID_RETAIN)):
        if not labels:
            continue
        x = draw_images(
            model,
            sorted(labels),
            each=each,
            seed=config.seed,
            purpose="final",
            cfg_scale=evaluate.cfg_scale,
            steps=evaluate.final_sampler_steps,
        )
        pixels = torch.from_numpy(unit_to_pixels(subject.to_pixels(x)))
        grids |= {str(label): pixels[i * each : (i + 1) * each] for i, label in enumerate(sorted(labels))}
    storage.write_bytes(uri, weights.to_bytes(grids))


def _plain(outcome: Outcome, world: int) -> dict[str, Any]:
    return {
        "steps": outcome.steps,
        "world_size": world,
        "first_crossing_step": outcome.first_crossing_step,
        "settled_step": outcome.settled_step,
        "before": outcome.before,
        "after": outcome.after,
        "timing": outcome.timing,
    }


def _finish(model: GenerativeModel, outcome: Outcome, config: UnlearnConfig, subject: Subject, run_uri: str, plain: dict[str, Any]) -> None:
    """Leave weights and grids under the run, `outcome.json` last: where it lies, training is over."""
    storage.write_bytes(storage.join(run_uri, TRAINED), weights.to_bytes(outcome.trained))
    with torch.no_grad():
        for name, parameter in model.net.named_parameters():
            if name in outcome.trained:
                parameter.copy_(outcome.trained[name])
    model.net.eval()
    _draw_grids(model, config, subject, storage.join(run_uri, "samples", "after.safetensors"))
    storage.write_json(storage.join(run_uri, OUTCOME), plain)
