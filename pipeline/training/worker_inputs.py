"""A worker's inputs from what lies in storage: weights, judge, partition. The same with and without Ray."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models import weights
from models.compiling import compile_first_order
from models.features.table import FeatureSpace
from models.generative import GenerativeModel, build
from models.judge import Judge, build_judge
from pipeline.config import UnlearnConfig
from pipeline.data import retain_stream_local
from pipeline.data.batch import Batch
from pipeline.data.cycle import Cycle
from pipeline.data.partition import Partition
from pipeline.evaluation.measure import Subject, feature_moments
from pipeline.evaluation.metrics.manifold import K, Manifold
from pipeline.runtime.precision import require_precision, use_tf32
from pipeline.training.loop import Inputs
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.experimental.latent_reflection import Folds, Posterior, fit
from pipeline.unlearning.noising import exchange_rows
from pipeline.weights import decoder, model_folder
from pipeline.weights.feature_extractors import open_space, read_spaces

REFERENCE_ROWS = 4096  # real rows that a Frechet distance is taken to, or a fold fitted to
ALIKE_ROWS = 512  # real rows of its exchange classes that a forgotten label's images are held against
PLACED = 256  # rows that are encoded at once


def assemble(
    config: UnlearnConfig,
    partition: Partition,
    *,
    model_uri: str,
    judge_uri: str,
    described: Mapping[str, Any],
    heldout: Callable[[Sequence[int]], Batch],
    retain: Callable[[int], Iterator[Batch]],
    collectives: Collectives,
    device: torch.device,
) -> Inputs:
    """Base weights and judge on `device`, the forget side in memory; `described` names the retained labels,
    neighbours and where further feature spaces lie.

    `heldout` reads the never-seen rows of labels; it is asked only where named samples are forgotten.
    """
    stored = model_folder.read(model_uri, "model.weights")
    model = build(stored.config, batch_norm=config.model.batch_norm)
    weights.load_into(model.net, stored.state, stored.uri)
    model.net.to(device)
    require_precision(device, config)
    use_tf32(config.train.tf32)
    if config.train.compile:
        compile_first_order(model.net)
    to_pixels = decoder.to_pixels(stored, device)
    judge = _judge(judge_uri, device)
    places: Mapping[str, str] | None = described.get("features")  # where a job has put them for its workers
    if places is None:
        opened = read_spaces(config.features)
    else:
        opened = {name: model_folder.read(uri, f"features.{name}.weights") for name, uri in places.items()}
    spaces = {name: open_space(kept.config, kept.state, device) for name, kept in opened.items()}
    shown = _first_retained(partition)
    with torch.no_grad():
        pixels = [to_pixels(x) for x in shown]
        references = {
            name: feature_moments(space, pixels, device) for name, space in {"judge": judge, **spaces}.items()
        }
    forget = partition.forget()
    by_name = config.request.sample_ids is not None
    exchange = partition.exchange() if config.request.exchange else None
    alike = {}
    if exchange is not None and model.conditional and not by_name:
        alike = exchange_manifolds(judge, exchange, config.request.exchange_classes, to_pixels, device)
    subject = Subject(
        judge=judge,
        forgotten=tuple(config.request.forgotten_classes),
        members=forget if by_name else None,
        heldout=heldout(sorted(set(forget.y.tolist()))) if by_name else None,
        membership_draws=config.evaluate.membership_draws,
        exchange=config.request.exchange_classes,
        retained=tuple(described["retained"]),
        neighbours=tuple(described["neighbours"]),
        reference=references.pop("judge"),
        spaces=spaces,
        references=references,
        manifolds=alike,
        to_pixels=to_pixels,
    )
    shown_instead = forget if config.method.fold else None
    if exchange is not None and config.method.targets == "data":
        shown_instead = exchange_rows(exchange, config.request.exchange_classes)
    return Inputs(
        config=config,
        model=model,
        subject=subject,
        retain=retain,
        forget=Cycle(forget, config.seed, "forget"),
        exchange=None if shown_instead is None else Cycle(shown_instead, config.seed, "exchange"),
        collectives=collectives,
        device=device,
        hat_judge=_judge(described["hat_judge"], device) if described.get("hat_judge") else None,
        folds=(
            folds_between(model, shown, forget, config.request.forgotten_classes, device)
            if config.method.fold
            else None
        ),
    )


@torch.no_grad()
def exchange_manifolds(
    space: FeatureSpace,
    rows: Batch,
    exchange: Mapping[int, Sequence[int]],
    to_pixels: Callable[[Tensor], Tensor],
    device: torch.device,
) -> dict[int, Manifold]:
    """For each forgotten class the features of real `rows` of its exchange classes, if there are enough. The
    same on every rank."""
    made = {}
    for c, targets in exchange.items():
        own = torch.isin(rows.y, torch.tensor(targets)).nonzero().flatten()
        own = own[:: -(-len(own) // ALIKE_ROWS)] if len(own) else own
        if len(own) > K:
            parts = [
                space.features(to_pixels(rows.mean[part].to(device))).cpu() for part in own.split(PLACED)
            ]
            made[c] = Manifold.of(torch.cat(parts))
    return made


def _judge(uri: str, device: torch.device) -> Judge:
    kept = model_folder.read(uri, "judge.weights")
    judge = build_judge(kept.config)
    weights.load_into(judge.net, kept.state, kept.uri)
    judge.net.to(device).eval()
    return judge


@torch.no_grad()
def folds_between(
    model: GenerativeModel,
    kept: Sequence[Tensor],
    forget: Batch,
    classes: Sequence[int],
    device: torch.device,
) -> Folds:
    """For each forgotten class the fold between the base model's latents of its rows and of retained ones:
    the same on every rank."""
    training = model.net.training
    model.net.eval()

    def place(batches: Iterable[Tensor]) -> Posterior:
        means, deviations = zip(*(model.posterior(x.to(device)) for x in batches))
        return torch.cat(means), torch.cat(deviations)

    others, folds = place(kept), {}
    for label in classes:
        rows = (forget.y == label).nonzero().flatten()
        rows = rows[:: -(-len(rows) // REFERENCE_ROWS)]
        folds[label] = fit(others, place(forget.mean[part] for part in rows.split(PLACED)))
    model.net.train(training)
    return Folds(by_class=folds)


def _first_retained(partition: Partition) -> list[Tensor]:
    """The partition's first retained rows, in batches: real ones, each once."""
    seen: set[str] = set()
    batches = []
    for batch in retain_stream_local.retain_stream(partition, 0, 1):
        fresh = [
            i
            for i, (name, draw) in enumerate(zip(batch.sample_id, batch.draw))
            if draw == 0 and name not in seen
        ]
        seen.update(batch.sample_id)
        if fresh:
            batches.append(batch.take(fresh).mean)
        if len(seen) >= REFERENCE_ROWS or any(batch.draw):
            break
    return batches
