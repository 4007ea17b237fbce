"""One step of the unlearning run on one worker.

B rows of each kind on this worker, W ranks, P trained parameters; every gradient is one vector (P,).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

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
from pipeline.unlearning.methods.preparation import Memory, Preparation, Tools
from pipeline.unlearning.methods.settings import MethodSettings
from pipeline.unlearning.methods.table import METHODS, Method, method_settings, own_losses, own_penalties
from pipeline.unlearning.noising import StepRows, step_rows
from pipeline.unlearning.optimizer import Average, adamw, apply_gradient, warmup, warmup_cosine
from pipeline.unlearning.parameters import label_parameter, select
from pipeline.unlearning.redirection import RedirectionRows
from pipeline.unlearning.teacher import Teacher
from pipeline.unlearning.uniformity import sampled_uniformity_loss

if TYPE_CHECKING:
    from pipeline.unlearning.sharding import Sharded

PART = "norm of "  # a figure of a step that is not logged: the norm of one optimiser's gradient


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
    """What a run moves, and how. `teacher` is the base: the state is made before anything has moved.

    Of a sharded run `named` are this rank's shards, and `inputs` have the sharded network.
    """

    inputs: Inputs  # what steps are computed from; checks have the run's own
    named: dict[str, nn.Parameter]  # P parameters, in the network's order
    teacher: Teacher | None
    optimizer: torch.optim.AdamW
    average: Average
    method: Method
    settings: MethodSettings
    differentiate: Differentiate
    preparation: Preparation
    memory: Memory  # what the method made at the base weights
    replay: Cycle | None = None  # rows of the method's own in the retained ones' place
    forget_optimizer: torch.optim.AdamW | None = None  # of what forgets, where it has moments of its own
    redirect: Redirect | None = None  # depth weights
    sharded: "Sharded | None" = None


def open_state(inputs: Inputs) -> State:
    """The state of a run at its base weights."""
    config, model = inputs.config, inputs.model
    method = METHODS[config.method.name]
    settings = method_settings(config.method.name, config.method.own)
    named, sharded = select(model, config.trainable), None
    teacher: Teacher | None = None
    labels, optim, asks_teacher = label_parameter(model, named), config.optim, has_teacher(config)
    if config.train.shard:
        from pipeline.unlearning.sharding import Sharded, ShardedTeacher

        sharded = Sharded(model, list(named), inputs.collectives, inputs.device)
        named = sharded.named
        teacher = ShardedTeacher(model, sharded.copy()) if asks_teacher else None
    elif asks_teacher:
        teacher = inputs.teacher(model, named)
    student = replace(inputs, model=sharded.model) if sharded else inputs
    params = list(named.values())
    label_scale = (optim.label_lr or optim.lr) / optim.lr
    scales = [label_scale if name == labels else 1.0 for name in named]
    optimiser_of = partial(adamw, params, lr=optim.lr, scales=scales, moments=optim.moments)
    optimizer = optimiser_of(weight_decay=optim.weight_decay)
    forget_optimizer = None
    if optim.separate_moments:
        forget_optimizer = optimiser_of(weight_decay=0.0)
    redirect = None
    if teacher and config.method.depth == "weights":
        redirect = open_redirect(inputs, teacher, student.model)
    student.model.net.train()
    preparation = _preparation(inputs, named, settings)
    memory = method.prepare(preparation) if method.prepare else Memory()
    tools = Tools(model=student.model, teacher=teacher, settings=settings, named=named, memory=memory.vectors)

    def differentiate(rows: StepRows | RedirectionRows, iteration: int) -> LocalGradients:
        local = local_gradients(student, params, tools, redirect, rows, iteration)
        return sharded.gradients(local) if sharded else local

    return State(
        inputs=student,
        named=named,
        teacher=teacher,
        optimizer=optimizer,
        average=Average(named, optim.ema),
        method=method,
        settings=settings,
        differentiate=over_virtual_ranks(differentiate, config, inputs.collectives.world_size),
        preparation=preparation,
        memory=memory,
        replay=Cycle(memory.replay, config.seed, "replay") if memory.replay else None,
        forget_optimizer=forget_optimizer,
        redirect=redirect,
        sharded=sharded,
    )


def has_teacher(config: UnlearnConfig) -> bool:
    """Whether the base model is asked during the run."""
    return config.method.targets == "teacher" or METHODS[config.method.name].teacher


def _preparation(inputs: Inputs, named: Mapping[str, nn.Parameter], settings: MethodSettings) -> Preparation:
    request, model = inputs.config.request, inputs.model
    return Preparation(
        model=model,
        named=named,
        forget=inputs.streams.forget.side,
        rows_of=inputs.rows_of,
        retained=[c for c in range(model.num_classes) if c not in request.forgotten_classes],
        exchange=request.exchange_classes,
        settings=settings,
        seed=inputs.config.seed,
        device=inputs.device,
        collectives=inputs.collectives,
    )


def train_step(inputs: Inputs, state: State, batch: Batch, iteration: int) -> dict[str, float | str]:
    """Step `iteration` (1, 2, ..., warm-up of the moments included) on this worker's `batch` of retain rows;
    returns what to log."""
    # Fetch, and noise: keyed by (seed, iteration, term, sample id), whoever holds the row.
    with phase("data"):
        rows = _step_rows(inputs, state, batch, iteration)
    return advance(inputs, state, rows, iteration)


def advance(
    inputs: Inputs, state: State, rows: StepRows | RedirectionRows, iteration: int
) -> dict[str, float | str]:
    """The step on `rows`, which lie on the device; returns what to log. The host reads of the device once,
    between the gradient and the move."""
    config, collectives = inputs.config, inputs.collectives
    step = iteration - config.optim.moment_warmup_steps

    # The adversary moves first.
    log: dict[str, float | str | Tensor] = {}
    if isinstance(rows, RedirectionRows) and state.redirect:
        log |= attack(inputs, state.redirect, rows, iteration)

    # Losses and their gradients: reduced over the ranks first, combined by the method second.
    gradients = Gradients(
        index=step,
        local=state.differentiate(rows, iteration),
        collectives=collectives,
        sharded=state.sharded is not None,
        progress=max(step, 0) / config.optim.max_steps,
        memory=state.memory.vectors,
    )
    gradient = state.method.gradient(gradients, state.settings)

    # Finite on every rank, or no rank moves.
    log = {**gradients.log, **log, **gradients.mean_losses(), "grad_norm/update": gradients.norm(gradient)}
    parts = {"": gradient} if state.forget_optimizer is None else gradients.parts
    norms = {f"{PART}{key}": gradients.norm(part) for key, part in parts.items() if key and part is not None}
    figures = {key: value for key, value in log.items() if isinstance(value, Tensor)}
    norm = figures["grad_norm/update"]
    numbers = collectives.require_finite({**gradients.quantities, "gradient": norm}, step, figures | norms)

    # Clip and move.
    lr = _learning_rate(step, config)
    with phase("optimiser"):
        move = partial(apply_gradient, params=list(state.named.values()), clip=config.optim.clip, lr=lr)
        if state.forget_optimizer is None:
            move(state.optimizer, gradient=gradient, norm=numbers["grad_norm/update"])
        else:
            numbers["grad_norm/update"] = _move_separately(state, parts, move, numbers)
        state.average.update(state.named)

    # Log.
    logged = {key: numbers[key] if isinstance(value, Tensor) else value for key, value in log.items()}
    return {"phase": config.method.name, **logged, "lr": lr}


def _move_separately(
    state: State,
    parts: Mapping[str, Tensor | None],
    move: Callable[..., float],
    numbers: Mapping[str, float],
) -> float:
    """What forgets moves the weights by its own moments, then what retains by its own (DualOptim, Zhong et
    al. 2025, arXiv 2504.15827), their norms among `numbers`; returns the norm of both gradients together."""
    norms = [
        move(optimizer, gradient=part, norm=numbers[f"{PART}{key}"])
        for key, optimizer in (("forget", state.forget_optimizer), ("retain", state.optimizer))
        for part in [parts[key]]
        if part is not None
    ]
    return float(sum(norm**2 for norm in norms) ** 0.5)


def _step_rows(inputs: Inputs, state: State, batch: Batch, iteration: int) -> StepRows | RedirectionRows:
    """This worker's rows of every kind, with their noise."""
    config, collectives, streams = inputs.config, inputs.collectives, inputs.streams
    optim, lanes = config.optim, config.partition.lanes
    place = (lanes, collectives.rank, collectives.world_size)
    if state.redirect:
        return redirect_rows(inputs, state.redirect, batch, iteration)
    if state.replay:
        batch = state.replay.take(iteration - 1, optim.batch_size, *place)
    forget = streams.forget.take(iteration - 1, optim.batch_size, *place)
    rows = step_rows(
        inputs.model,
        batch,
        forget,
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
    if change := state.method.forget_rows:
        changed = change(rows.forget, forget, state.preparation, state.memory, iteration)
        rows = replace(rows, forget=changed)
    return rows


def _learning_rate(step: int, config: UnlearnConfig) -> float:
    """Of step `step`; 0 while the moments are filled."""
    optim = config.optim
    if optim.schedule == "cosine" and step >= 1:
        return warmup_cosine(step, lr=optim.lr, warmup_steps=optim.warmup_steps, total=optim.max_steps)
    return warmup(step, lr=optim.lr, warmup_steps=optim.warmup_steps)


def local_gradients(
    inputs: Inputs,
    params: Sequence[nn.Parameter],
    tools: Tools,
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
        teacher=tools.teacher,
        micro_batches=micro,
        joint=hvp != "recompute",
        hat=hat,
        own=own_losses(section.name, tools),
        penalties=own_penalties(section.name, tools),
        autocast=lambda: autocast(config.train.precision, inputs.device),
    )
    return LocalGradients(params=params, terms=terms, hvp=hvp, fd_radius=FD_RADIUS[config.train.precision])
