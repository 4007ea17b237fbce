"""A worker's inputs from what lies in storage: weights, judge, partition. The same with and without Ray."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models import weights
from models.compiling import compile_first_order
from models.generative import GenerativeModel, build
from models.judge import Judge, build_judge
from pipeline.config import UnlearnConfig
from pipeline.data import retain_stream_local
from pipeline.data.batch import Batch, Side
from pipeline.data.cycle import Cycle
from pipeline.data.parquet_shards import FLIP_MARK
from pipeline.data.partition import Partition
from pipeline.data.retain_stream import ahead
from pipeline.data.tombstones import open_lake
from pipeline.evaluation.context import JUDGE, EvalContext, EvalSpec
from pipeline.evaluation.feature_statistics import Moments, merged
from pipeline.evaluation.manifold import K
from pipeline.evaluation.rows import manifolds
from pipeline.runtime.precision import require_precision, use_tf32
from pipeline.training.step import Inputs, Streams
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.experimental.latent_reflection import reflecting
from pipeline.unlearning.noising import exchange_rows
from pipeline.unlearning.teacher import Teacher
from pipeline.weights import decoder, model_folder
from pipeline.weights.feature_extractors import open_space, read_spaces

REFERENCE_ROWS = 4096  # real rows that a Frechet distance is taken to
ALIKE_ROWS = 512  # real rows of its exchange classes that a forgotten label's images are held against
ROWS_OF_A_CLASS = 256  # that are held in memory beside the partition


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a worker reads beside its partition: URIs of lake, base weights and judge; `subject` names the
    retained labels, neighbours and where further feature spaces lie."""

    lake_uri: str
    model_uri: str
    judge_uri: str
    subject: Mapping[str, Any]

    @staticmethod
    def of(values: Mapping[str, Any]) -> "Sources":
        """Out of `values`, which may hold more."""
        return Sources(**{field.name: values[field.name] for field in fields(Sources)})


def assemble(
    config: UnlearnConfig,
    partition: Partition,
    sources: Sources,
    *,
    collectives: Collectives,
    device: torch.device,
    retain: Callable[[int], Iterator[Batch]] | None = None,
) -> Inputs:
    """Base weights and judge on `device`, the forget side in memory unless it is large. `retain` streams this
    rank's retain rows; without it this process reads them itself, ahead of the steps."""
    model, to_pixels = _base_model(config, sources.model_uri, device)
    judge, uniformity_judge = _judge(sources.judge_uri, device), sources.subject.get("uniformity_judge")
    held_bytes = config.partition.held_bytes
    retained_rows, forget = _first_retained(partition), partition.side("forget", held_bytes)
    subject = _subject(config, partition, sources, model, judge, retained_rows, forget, to_pixels, device)
    shown_instead: Side | None = None
    teacher: Callable[[GenerativeModel, Mapping[str, Tensor]], Teacher] = Teacher
    if config.method.latent_reflection:
        shown_instead = forget
        teacher = reflecting(model, retained_rows, forget, config.request.classes, device)
    if config.request.exchange and config.method.targets == "data":
        exchange = partition.side("exchange", held_bytes)
        shown_instead = exchange_rows(exchange, config.request.exchange_classes)
    rank, world_size = collectives.rank, collectives.world_size
    return Inputs(
        config=config,
        model=model,
        streams=Streams(
            retain=retain
            or (lambda start: ahead(retain_stream_local.retain_stream(partition, rank, world_size, start))),
            forget=Cycle(forget, config.seed, "forget"),
            exchange=None if shown_instead is None else Cycle(shown_instead, config.seed, "exchange"),
        ),
        subject=subject,
        collectives=collectives,
        device=device,
        uniformity_judge=_judge(uniformity_judge, device) if uniformity_judge else None,
        teacher=teacher,
        rows_of=partial(_rows_of, config, sources.lake_uri, forget),
    )


def _rows_of(config: UnlearnConfig, lake_uri: str, forget: Side, labels: Sequence[int]) -> Batch:
    """Training rows of `labels` that are not to be forgotten: of each class as far apart as they come, at
    most `ROWS_OF_A_CLASS`."""
    rows, gone = open_lake(config.storage, lake_uri).read(labels, "train"), set(forget.sample_id)
    picked = []
    for label in labels:
        own = (rows.y == label).nonzero().flatten().tolist()
        own = [index for index in own if rows.sample_id[index].removesuffix(FLIP_MARK) not in gone]
        picked += own[:: -(-len(own) // ROWS_OF_A_CLASS) or 1]
    return rows.take(picked)


def _base_model(
    config: UnlearnConfig, uri: str, device: torch.device
) -> tuple[GenerativeModel, Callable[[Tensor], Tensor]]:
    """The base model as the configuration wants it, and what makes images of its samples."""
    stored = model_folder.read(uri, "model.weights")
    model = build(stored.config, batch_norm=config.model.batch_norm)
    weights.load_into(model.net, stored.state, stored.uri)
    model.net.to(device)
    require_precision(device, config)
    use_tf32(config.train.tf32)
    if config.train.compile:
        compile_first_order(model.net)
    return model, decoder.to_pixels(stored, device)


@torch.no_grad()
def _subject(
    config: UnlearnConfig,
    partition: Partition,
    sources: Sources,
    model: GenerativeModel,
    judge: Judge,
    retained_rows: Sequence[Tensor],
    forget: Side,
    to_pixels: Callable[[Tensor], Tensor],
    device: torch.device,
) -> EvalContext:
    """What is measured before, during and after. Never-seen rows are read only where named samples are
    forgotten."""
    subject, request = sources.subject, config.request
    places: Mapping[str, str] | None = subject.get("features")  # where a job has put them for its workers
    if places is None:
        extractors = read_spaces(config.features)
    else:
        extractors = {
            name: model_folder.read(uri, f"features.{name}.weights") for name, uri in places.items()
        }
    spaces = {name: open_space(stored.config, stored.state, device) for name, stored in extractors.items()}
    pixels = [to_pixels(x) for x in retained_rows]
    real = {
        f"{name}/real/moments/all": (
            merged([Moments.of(space.features(x.to(device))) for x in pixels]).packed()
        )
        for name, space in {JUDGE: judge, **spaces}.items()
    }
    rows: dict[int, Batch] = {}
    if request.exchange_classes_now and model.conditional:
        exchange = partition.side("exchange", config.partition.held_bytes)
        rows = exchange_rows_by_class(exchange, request.exchange_classes_now)
    # of a request that names samples, beside whole classes or alone, the attack looks at these
    train, never_seen, sample_classes = forget, forget.take([]), []
    sample_ids: tuple[str, ...] = ()
    if request.sample_ids is not None:
        whole = torch.isin(forget.y, torch.tensor(request.forgotten_classes, dtype=torch.long))
        members = forget.chosen((~whole).nonzero().flatten().tolist())
        sample_classes = sorted(set(members.y.tolist()))
        train = members
        if sample_classes and isinstance(members, Batch):  # what their samples may be near to beside them
            sample_ids = members.sample_id
            train = members.joined(_rows_of(config, sources.lake_uri, forget, sample_classes))
        never_seen = open_lake(config.storage, sources.lake_uri).read(sample_classes, "heldout")
    return EvalContext(
        model=model,
        judge=judge,
        spec=EvalSpec(
            forgotten=tuple(request.classes),
            earlier=tuple(request.forgotten_earlier),
            exchange=request.exchange_classes,
            retained=tuple(subject["retained"]),
            neighbours=tuple(subject["neighbours"]),
            null_label=model.null_label,
            timesteps=model.time.steps,
            num_classes=judge.num_classes,
            conditional=model.conditional,
            sample_ids=sample_ids,
            sample_classes=tuple(sample_classes),
        ),
        rows=lambda labels, split: train if split == "train" else never_seen,
        spaces=spaces,
        real=real,
        manifolds=manifolds(judge, rows, K, to_pixels, device),
        to_pixels=to_pixels,
    )


def exchange_rows_by_class(rows: Side, exchange: Mapping[int, Sequence[int]]) -> dict[int, Batch]:
    """For each forgotten class real `rows` of its exchange classes, as far apart as they come, at most
    `ALIKE_ROWS`. The same on every rank."""
    own = {
        c: torch.isin(rows.y, torch.tensor(targets)).nonzero().flatten() for c, targets in exchange.items()
    }
    return {
        c: rows.take(index[:: -(-len(index) // ALIKE_ROWS)].tolist())
        for c, index in own.items()
        if len(index)
    }


def _judge(uri: str, device: torch.device) -> Judge:
    stored = model_folder.read(uri, "judge.weights")
    judge = build_judge(stored.config)
    weights.load_into(judge.net, stored.state, stored.uri)
    judge.net.to(device).eval()
    return judge


def _first_retained(partition: Partition) -> list[Tensor]:
    """The partition's first retained rows, in batches: real ones, each once."""
    names: set[str] = set()
    batches = []
    for batch in retain_stream_local.retain_stream(partition, 0, 1):
        fresh = [
            i
            for i, (name, occurrence) in enumerate(zip(batch.sample_id, batch.occurrence))
            if occurrence == 0 and name not in names
        ]
        names.update(batch.sample_id)
        if fresh:
            batches.append(batch.take(fresh).mean)
        if len(names) >= REFERENCE_ROWS or any(batch.occurrence):
            break
    return batches
