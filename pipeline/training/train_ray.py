"""The unlearning loop on Ray Train's workers: streams by Ray Data, checkpoints by Ray Train, everything else as without Ray."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from models import weights
from models.generative import GenerativeModel, build
from models.judge import build_judge
from pipeline import config as configuration
from pipeline import model_store, records, storage
from pipeline.config import UnlearnConfig
from pipeline.data import stream_ray
from pipeline.data.cycle import Cycle
from pipeline.data.partition import Partition, find_partition
from pipeline.data.rows import unit_to_pixels
from pipeline.evaluation.frechet import Moments
from pipeline.evaluation.measure import Subject, feature_moments
from pipeline.evaluation.sampling import draw_images
from pipeline.training.checkpoint import STATE, TENSORS, Checkpoint
from pipeline.training.draws import exchange_rows
from pipeline.training.launch_ray import launch, worker_setup
from pipeline.training.loop import Inputs, Outcome, unlearn

METRICS, OUTCOME, TRAINED = "metrics.jsonl", "outcome.json", "trained.safetensors"
GRID_FORGET, GRID_RETAIN = 8, 4  # images of each label in the before and after grids
REFERENCE_ROWS = 4096  # real retained rows that the Frechet distance is taken to


def train(
    config: UnlearnConfig, partition_uri: str, model_uri: str, judge_uri: str, subject: dict[str, Any], run_uri: str
) -> dict[str, Any]:
    """Run the loop on the workers, or continue it; returns `Outcome` as plain data. Weights and grids lie under `run_uri`."""
    arguments = {
        "config": config.model_dump(mode="json"),
        "partition_uri": partition_uri,
        "model_uri": model_uri,
        "judge_uri": judge_uri,
        "subject": subject,
        "run_uri": run_uri,
    }
    return launch(_worker, arguments, config.train, storage_uri=run_uri, name="checkpoints")


def _worker(arguments: dict[str, Any]) -> dict[str, Any]:
    config = configuration.parse(UnlearnConfig, arguments["config"])
    device, collectives = worker_setup(config.train.threads)
    first, run_uri = collectives.rank == 0, arguments["run_uri"]
    start = _reported()

    stored = model_store.read(arguments["model_uri"], "model.weights")
    model = build(stored.config)
    weights.load_into(model.net, stored.state, stored.uri)
    model.net.to(device)
    partition = find_partition(arguments["partition_uri"])
    assert partition is not None
    subject = _subject(arguments, partition, config, device)

    metrics_uri = storage.join(run_uri, METRICS)
    kept = [r for r in records.read(metrics_uri) if start is not None and r["step"] <= start.progress["step"]] if first else []
    writer = records.Writer(metrics_uri, kept)
    if first:
        _draw_grids(model, config, subject, storage.join(run_uri, "samples", "before.safetensors"))

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

    by_data = config.request.exchange and config.method.targets == "data"
    exchange = exchange_rows(partition.exchange(), config.request.exchange) if by_data else None
    outcome = unlearn(
        Inputs(
            config=config,
            model=model,
            subject=subject,
            retain=lambda start: stream_ray.retain_stream(partition, collectives.rank, collectives.world, start),
            forget=Cycle(partition.forget(), config.seed, "forget"),
            exchange=None if exchange is None else Cycle(exchange, config.seed, "exchange"),
            collectives=collectives,
            device=device,
            record=writer.write if first else lambda record: None,
            save=save,
        ),
        start,
    )
    plain = _plain(outcome, collectives.world)
    if first:
        writer.flush()
        _finish(model, outcome, config, subject, run_uri, plain)
    return plain


def _reported() -> Checkpoint | None:
    """The last checkpoint that was reported, when this run continues one."""
    import ray.train

    found = ray.train.get_checkpoint()
    if found is None:
        return None
    with found.as_directory() as folder:
        return Checkpoint.from_files({name: (Path(folder) / name).read_bytes() for name in (TENSORS, STATE)})


def _subject(arguments: dict[str, Any], partition: Partition, config: UnlearnConfig, device: torch.device) -> Subject:
    stored = model_store.read(arguments["judge_uri"], "judge.weights")
    judge = build_judge(stored.config)
    weights.load_into(judge.net, stored.state, stored.uri)
    judge.net.to(device).eval()
    described = arguments["subject"]
    return Subject(
        judge=judge,
        forgotten=tuple(config.request.classes),
        exchange=config.request.exchange,
        retained=tuple(described["retained"]),
        neighbours=tuple(described["neighbours"]),
        reference=_reference(partition, judge),
    )


@torch.no_grad()
def _reference(partition: Partition, judge: Any) -> Moments:
    """Moments of the judge's features of the partition's first retained rows: real ones, each once."""
    from pipeline.data.stream_local import retain_stream

    seen: set[str] = set()
    batches = []
    for batch in retain_stream(partition, 0, 1):
        fresh = [i for i, (name, draw) in enumerate(zip(batch.sample_id, batch.draw)) if draw == 0 and name not in seen]
        seen.update(batch.sample_id)
        if fresh:
            batches.append(batch.take(fresh).mean)
        if len(seen) >= REFERENCE_ROWS or any(batch.draw):
            break
    return feature_moments(judge, batches)


@torch.no_grad()
def _draw_grids(model: GenerativeModel, config: UnlearnConfig, subject: Subject, uri: str) -> None:
    """Images of every judged label on fixed seeds, as uint8 (n, H, W, C) tensors named by label; drawn once."""
    if storage.exists(uri):
        return
    evaluate = config.evaluate
    grids: dict[str, torch.Tensor] = {}
    for labels, each in ((subject.forgotten, GRID_FORGET), (subject.retained, GRID_RETAIN)):
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
