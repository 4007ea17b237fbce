"""A step of depth weights on one worker: its rows, the adversary's move, and the losses that the method is
given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.generative import GenerativeModel
from pipeline.data.batch import Batch
from pipeline.data.cycle import Cycle
from pipeline.evaluation.neighbours import nearest_classes
from pipeline.runtime.precision import autocast
from pipeline.training.elastic import cut, over_virtual_ranks
from pipeline.unlearning.adversary import Adversary
from pipeline.unlearning.gradients import FD_RADIUS, Gradients, LocalGradients
from pipeline.unlearning.noising import drop_labels
from pipeline.unlearning.redirection import (
    ADVERSARY,
    Mixture,
    RedirectionRows,
    near_classes,
    nearest_labels,
    redirection_rows,
    redirection_terms,
)
from pipeline.unlearning.teacher import Teacher

if TYPE_CHECKING:
    from pipeline.training.step import Inputs

CANDIDATES = 32  # labels among which the near classes of one are sought


@dataclass(frozen=True, kw_only=True)
class Redirect:
    """Depth weights: the embeddings that the forgotten rows are redirected under, and to what: the exchange
    classes of each forgotten class, the label that a row is nearest to, or, for named samples, other rows of
    their class."""

    teacher: Teacher
    adversary: Adversary
    mixture: Mixture
    retained: Sequence[int]
    exchange: Mapping[int, Sequence[int]]
    nearest: Mapping[str, int]
    siblings: Mapping[int, Batch]
    near: Mapping[int, Sequence[int]]  # by forgotten class, the classes that share most with it
    beside: Cycle | None  # their rows


def open_redirect(inputs: "Inputs", teacher: Teacher, student: GenerativeModel) -> Redirect:
    """Where the forgotten rows are redirected to, and the pool before its first step, at the base weights.
    `student` is the model whose embeddings the pool begins at."""
    config, model, forget = inputs.config, inputs.model, inputs.streams.forget.side
    request = config.request
    # forgotten now, or earlier with samples that stand in for their rows
    classes = sorted(set(forget.y.tolist()) & set(request.forgotten_classes))
    exchange = {c: targets for c, targets in request.exchange_classes.items() if c in classes}
    retained = [c for c in range(model.num_classes) if c not in request.forgotten_classes]
    section = config.redirection
    bare, nearest = [c for c in classes if c not in exchange], {}
    if bare:
        labels = inputs.subject.spec.neighbours
        rows = torch.isin(forget.y, torch.tensor(bare)).nonzero().flatten().tolist()
        nearest = nearest_labels(model, forget.chosen(rows), labels, seed=config.seed, device=inputs.device)
        exchange = {**exchange, **dict.fromkeys(bare, labels)}
    named = sorted(set(forget.y.tolist()) - set(request.forgotten_classes))
    siblings = {label: inputs.rows_of([label]) for label in named}
    near = near_classes(
        model,
        forget,
        {c: _candidates(model, c, retained) for c in classes if section.near_classes},
        section.near_classes,
        seed=config.seed,
        device=inputs.device,
    )
    beside_labels = sorted({label for others in near.values() for label in others})
    beside = inputs.rows_of(beside_labels) if beside_labels and section.near_rows else None
    adversary = Adversary(
        student,
        sorted({*classes, *siblings}),
        retained,
        size=section.pool,
        buckets=section.buckets,
        rates=section.embedding_lr,
        restart_every=section.restart_every,
        seed=config.seed,
    )
    mixture = Mixture(**{field.name: getattr(section, field.name) for field in fields(Mixture)})
    return Redirect(
        teacher=teacher,
        adversary=adversary,
        mixture=mixture,
        retained=retained,
        exchange=exchange,
        nearest=nearest,
        siblings=siblings,
        near=near,
        beside=Cycle(beside, config.seed, "near") if beside else None,  # the lake may have no rows of them
    )


def _candidates(model: GenerativeModel, label: int, retained: Sequence[int]) -> list[int]:
    """Of the retained labels those whose rows of the table are nearest to that of `label`."""
    return nearest_classes(model, [label], retained, CANDIDATES)


def redirect_rows(inputs: "Inputs", redirect: Redirect, batch: Batch, iteration: int) -> RedirectionRows:
    """This worker's rows of every kind, with their noise, and the pool as it begins the step."""
    config, collectives, forget = inputs.config, inputs.collectives, inputs.streams.forget
    lanes = config.partition.lanes
    place = (lanes, collectives.rank, collectives.world_size)
    return redirection_rows(
        inputs.model,
        batch,
        forget.take(iteration - 1, redirect.mixture.forget_rows, *place),
        redirect.adversary,
        redirect.mixture,
        lanes=lanes,
        rank=collectives.rank,
        world_size=collectives.world_size,
        seed=config.seed,
        step=iteration,
        device=inputs.device,
        retain_labels=drop_labels(
            config.method.null_fraction,
            inputs.model.null_label,
            config.request.forgotten_earlier,
            config.method.held_fraction,
        ),
        retained=redirect.retained,
        exchange={**redirect.exchange, **{c: (c,) for c in redirect.teacher.pushed}},
        nearest=redirect.nearest,
        siblings=redirect.siblings,
        near=redirect.near,
        beside=redirect.beside.take(iteration - 1, config.redirection.near_rows, *place)
        if redirect.beside
        else None,
    )


def attack(inputs: "Inputs", redirect: Redirect, rows: RedirectionRows, iteration: int) -> dict[str, Tensor]:
    """Move the adversarial embeddings of step `iteration` down the true loss of its rows; what to log."""
    config, adversary = inputs.config, redirect.adversary
    adversary.renew(iteration)
    differentiate = over_virtual_ranks(
        partial(redirect_gradients, inputs, adversary.entries, redirect),
        config,
        inputs.collectives.world_size,
    )
    gradients = Gradients(
        index=iteration, local=differentiate(rows, iteration), collectives=inputs.collectives
    )
    (gradient,) = gradients.of(ADVERSARY)
    if any(config.redirection.embedding_lr):
        adversary.move(gradient)
    return gradients.mean_losses()


def redirect_gradients(
    inputs: "Inputs",
    params: Sequence[nn.Parameter],
    redirect: Redirect,
    rows: RedirectionRows,
    iteration: int,
) -> LocalGradients:
    """The losses of `rows` as closures over micro-batches, and how they are differentiated with respect to
    the weights or the adversary's embeddings."""
    config = inputs.config
    micro, hvp = cut(config, len(rows))
    terms = redirection_terms(
        inputs.model,
        rows,
        redirect.mixture.weight,
        teacher=redirect.teacher,
        adversary=redirect.adversary,
        micro_batches=micro,
        autocast=lambda: autocast(config.train.precision, inputs.device),
    )
    return LocalGradients(params=params, terms=terms, hvp=hvp, fd_radius=FD_RADIUS[config.train.precision])
