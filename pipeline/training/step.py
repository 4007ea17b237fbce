"""One step of the unlearning run on one worker.

B rows of each kind on this worker, W ranks, P trained parameters; every gradient is one vector (P,).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from models.generative import GenerativeModel
from models.judge import Judge
from pipeline.config import UnlearnConfig
from pipeline.data.batch import Batch
from pipeline.data.cycle import Cycle
from pipeline.evaluation.context import EvalContext
from pipeline.runtime.precision import autocast
from pipeline.runtime.stopwatch import phase
from pipeline.training.elastic import Differentiate, cut, over_virtual_ranks
from pipeline.training.redirect import Redirect, attack, open_redirect, redirect_gradients, redirect_rows
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.gradients import FD_RADIUS, Gradients, LocalGradients
from pipeline.unlearning.losses import Weights, build_terms
from pipeline.unlearning.methods.settings import MethodSettings
from pipeline.unlearning.methods.table import METHODS, Method, method_settings, own_losses
from pipeline.unlearning.noising import Rows, StepRows, step_rows
from pipeline.unlearning.optimizer import Average, adamw, apply_gradient, warmup, warmup_cosine
from pipeline.unlearning.parameters import label_parameter, select
from pipeline.unlearning.redirection import RedirectionRows
from pipeline.unlearning.teacher import Teacher
from pipeline.unlearning.uniformity import sampled_uniformity_loss


@dataclass(frozen=True, kw_only=True)
class Streams:
    """This worker's lanes of the global batches. `retain(start)` gives its rows of batch `start` and of those
    after it.

    `exchange` holds what a forgotten label is shown instead (data targets, latent reflection); without it the
    retain rows serve.
    """

    retain: Callable[[int], Iterator[Batch]]
    forget: Cycle
    exchange: Cycle | None


def no_rows(labels: Sequence[int]) -> Batch:
    """Of a caller that has none beside its streams."""
    raise ValueError(f"no rows of the classes {list(labels)} can be read here")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a worker's steps and checks are computed from."""

    config: UnlearnConfig
    model: GenerativeModel  # base weights loaded, on `device`
    streams: Streams
    subject: EvalContext  # what is measured, and by which judge
    collectives: Collectives
    device: torch.device
    uniformity_judge: Judge | None = None  # whose gradient the hat term takes; None: the judge that measures
    teacher: Callable[[GenerativeModel, Mapping[str, Tensor]], Teacher] = Teacher
    rows_of: Callable[[Sequence[int]], Batch] = no_rows  # further retained rows of some classes


@dataclass(frozen=True, kw_only=True)
class State:
    """What a run moves, and how. `teacher` is the base: the state is made before anything has moved."""

    named: dict[str, nn.Parameter]  # P parameters, in the network's order
    teacher: Teacher | None
    optimizer: torch.optim.AdamW
    average: Average
    method: Method
    settings: MethodSettings
    differentiate: Differentiate
    redirect: Redirect | None = None  # depth weights


def open_state(inputs: Inputs) -> State:
    """The state of a run at its base weights."""
    config, model = inputs.config, inputs.model
    method = METHODS[config.method.name]
    settings = method_settings(config.method.name, config.method.own)
    named = select(model, config.trainable)
    params, teacher = list(named.values()), None
    if config.method.targets == "teacher" or method.teacher:
        teacher = inputs.teacher(model, named)
    own = own_losses(config.method.name, model, teacher, settings)
    labels, optim = label_parameter(model, named), config.optim
    label_scale = (optim.label_lr or optim.lr) / optim.lr
    optimizer = adamw(
        params,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        scales=[label_scale if name == labels else 1.0 for name in named],
    )
    redirect = open_redirect(inputs, teacher) if teacher and config.method.depth == "weights" else None
    model.net.train()
    return State(
        named=named,
        teacher=teacher,
        optimizer=optimizer,
        average=Average(named, optim.ema),
        method=method,
        settings=settings,
        differentiate=over_virtual_ranks(
            partial(local_gradients, inputs, params, teacher, own, redirect),
            config,
            inputs.collectives.world_size,
        ),
        redirect=redirect,
    )


def train_step(inputs: Inputs, state: State, batch: Batch, iteration: int) -> dict[str, float | str]:
    """Step `iteration` (1, 2, ..., warm-up of the moments included) on this worker's `batch` of retain rows;
    returns what to log."""
    config, collectives = inputs.config, inputs.collectives
    step = iteration - config.optim.moment_warmup_steps

    # Fetch, and noise: keyed by (seed, iteration, term, sample id), whoever holds the row.
    with phase("data"):
        rows = _step_rows(inputs, state, batch, iteration)

    # The adversary moves first.
    log: dict[str, float | str] = {}
    if isinstance(rows, RedirectionRows) and state.redirect:
        log |= attack(inputs, state.redirect, rows, iteration)

    # Losses and their gradients: reduced over the ranks first, combined by the method second.
    gradients = Gradients(index=step, local=state.differentiate(rows, iteration), collectives=collectives)
    gradient = state.method.gradient(gradients, state.settings)

    # Finite on every rank, or no rank moves.
    collectives.require_finite({**gradients.quantities, "gradient": gradient.norm()}, step)

    # Clip and move.
    lr = _learning_rate(step, config)
    with phase("optimiser"):
        params = list(state.named.values())
        norm = apply_gradient(state.optimizer, params, gradient, lr=lr, clip=config.optim.clip)
        state.average.update(state.named)

    # Log.
    return {
        "phase": config.method.name,
        **gradients.log,
        **log,
        **gradients.mean_losses(),
        "grad_norm/update": norm,
        "lr": lr,
    }


def _step_rows(inputs: Inputs, state: State, batch: Batch, iteration: int) -> StepRows | RedirectionRows:
    """This worker's rows of every kind, with their noise."""
    config, collectives, streams = inputs.config, inputs.collectives, inputs.streams
    optim, lanes = config.optim, config.partition.lanes
    place = (lanes, collectives.rank, collectives.world_size)
    if state.redirect:
        return redirect_rows(inputs, state.redirect, batch, iteration)
    return step_rows(
        inputs.model,
        batch,
        streams.forget.take(iteration - 1, optim.batch_size, *place),
        streams.exchange.take(iteration - 1, optim.batch_size, *place) if streams.exchange else None,
        seed=config.seed,
        step=iteration,
        device=inputs.device,
        null_fraction=config.method.null_fraction if state.teacher else 0.0,
        held=tuple(config.request.forgotten_earlier) if state.teacher else (),
        held_fraction=config.method.held_fraction,
        exchange_classes=config.request.exchange_classes_now,
        share_noise=config.method.share_noise,
    )


def _learning_rate(step: int, config: UnlearnConfig) -> float:
    """Of step `step`; 0 while the moments are filled."""
    optim = config.optim
    if optim.schedule == "cosine" and step >= 1:
        return warmup_cosine(step, lr=optim.lr, warmup_steps=optim.warmup_steps, total=optim.max_steps)
    return warmup(step, lr=optim.lr, warmup_steps=optim.warmup_steps)


def local_gradients(
    inputs: Inputs,
    params: Sequence[nn.Parameter],
    teacher: Teacher | None,
    own: Mapping[str, Callable[[Rows], Tensor]],
    redirect: Redirect | None,
    rows: StepRows | RedirectionRows,
    iteration: int,
) -> LocalGradients:
    """The losses of `rows` as closures over micro-batches, and how they are differentiated: nothing is
    computed yet."""
    config, model, section = inputs.config, inputs.model, inputs.config.method
    if isinstance(rows, RedirectionRows):
        assert redirect is not None
        return redirect_gradients(inputs, params, redirect, rows, iteration)
    micro, hvp = cut(config, len(rows))
    hat = None
    if section.uniformity_weight:
        hat = sampled_uniformity_loss(
            model,
            inputs.uniformity_judge or inputs.subject.judge,
            weight=section.uniformity_weight,
            retained=inputs.subject.spec.retained,
            rows=len(rows.retain),
            seed=config.seed,
            step=iteration,
            collectives=inputs.collectives,
            device=inputs.device,
        )
    terms = build_terms(
        model,
        rows,
        Weights(exchange=section.exchange_weight, targets=section.targets, contrast=section.contrast),
        teacher=teacher,
        micro_batches=micro,
        joint=hvp != "recompute",
        hat=hat,
        own=own,
        autocast=lambda: autocast(config.train.precision, inputs.device),
    )
    return LocalGradients(params=params, terms=terms, hvp=hvp, fd_radius=FD_RADIUS[config.train.precision])
