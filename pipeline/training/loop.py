"""The unlearning run on one worker: a plain loop that Ray Train, torchrun or a single process may call.

Per step: fetch, draw, gradients (the method), finite?, clip and move, average, log; every few steps a check
on fresh noise and a checkpoint; it ends when the settling rule says so or the steps are spent, and keeps the
weights of the best check.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.generative import GenerativeModel
from models.judge import Judge
from pipeline.config import UnlearnConfig
from pipeline.data.batch import Batch
from pipeline.data.cycle import Cycle
from pipeline.evaluation.measure import Subject
from pipeline.evaluation.stopping_rule import SettleRule
from pipeline.runtime.precision import autocast
from pipeline.runtime.stopwatch import Stopwatch, phase, timed
from pipeline.training.checkpoint import Checkpoint, optimiser_moments, restore
from pipeline.training.elastic import micro_batches, share_order, shares
from pipeline.training.initialise import begin
from pipeline.training.periodic_eval import Checks, Evaluator, check, standing_in
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.experimental.latent_reflection import Folds
from pipeline.unlearning.gradients import Step
from pipeline.unlearning.losses import Teacher, Weights, build_terms
from pipeline.unlearning.methods.interim import method_settings
from pipeline.unlearning.methods.settings import MethodSettings
from pipeline.unlearning.methods.table import METHODS
from pipeline.unlearning.noising import sample_latents, step_rows
from pipeline.unlearning.optimizer import Average, adamw, apply_gradient, warmup
from pipeline.unlearning.parameters import flat, label_parameter, select, unflat
from pipeline.unlearning.uniformity import hat_loss

# distance at which finite differences lose least to rounding and curvature (docs/numerics.md)
FD_RADIUS = {"fp32": 2e-2, "bf16": 3e-1}
NO, YES, INTERRUPTED = 0, 1, 2  # what the ranks agree on: the largest of their words counts


class Interrupted(Exception):
    """The run was asked to stop; a checkpoint of `step` lies ready. Raised on every rank at once."""

    def __init__(self, step: int, reason: str):
        super().__init__(f"stopped after step {step}: {reason}")
        self.step, self.reason = step, reason


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What one worker's run is made of. `retain(start)` streams its rows of the global batches from `start`
    on.

    `exchange` holds rows of the exchange classes for data targets, or the forgotten ones to be folded; else
    the retain rows serve.
    """

    config: UnlearnConfig
    model: GenerativeModel  # base weights loaded, on `device`
    subject: Subject
    retain: Callable[[int], Iterator[Batch]]
    forget: Cycle
    exchange: Cycle | None
    collectives: Collectives
    device: torch.device
    hat_judge: Judge | None = None  # whose gradient the hat term takes; None: the judge that measures
    folds: Folds | None = None  # where forgotten rows are sent (method.fold)
    # {"result", "record"} of the base model, where it was measured already
    before: dict[str, Any] | None = None
    record: Callable[[dict[str, Any]], None] = lambda record: None  # a line of metrics.jsonl
    timing: Callable[[dict[str, Any]], None] = lambda seconds: None  # a step's seconds by phase, on this rank
    save: Callable[[Checkpoint], None] | None = None  # on the rank that writes checkpoints
    # makes the checks beside the training; None: all ranks make them in place
    evaluator: Evaluator | None = None
    interrupted: Callable[[], str | None] = lambda: None  # why the run should stop now, if it should


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to. `trained` are the weights to register, those of `kept_step`; `stopped` says what
    ended it (settled, guard, checks, steps); `missing` are steps whose check could not be made.
    """

    steps: int
    trained: Mapping[str, Tensor]
    kept_step: int
    stopped: str
    missing: tuple[int, ...]
    first_crossing_step: int | None
    settled_step: int | None
    before: dict[str, Any]
    after: dict[str, Any]
    timing: dict[str, float | None]


def unlearn(inputs: Inputs, start: Checkpoint | None = None) -> Outcome:
    """Run from the base weights, or go on from `start` as if it had never stopped. Raises `Interrupted` when
    asked to stop."""
    config, model, collectives = inputs.config, inputs.model, inputs.collectives
    named = select(model, config.trainable)
    teacher = (
        Teacher(model, named) if config.method.targets == "teacher" or config.method.name == "esd" else None
    )
    labels = label_parameter(model, named)
    scales = [
        (config.optim.label_lr or config.optim.lr) / config.optim.lr if name == labels else 1.0
        for name in named
    ]
    optimiser = adamw(
        list(named.values()), lr=config.optim.lr, weight_decay=config.optim.weight_decay, scales=scales
    )
    method, prime, last = METHODS[config.method.name], config.optim.prime_steps, config.optim.max_steps
    model.net.train()

    iteration, progress = (start.iteration, dict(start.progress)) if start else (0, _begin(inputs))
    if start is None:
        # the teacher and what was measured before are the base
        progress["push"] = {str(c): push for c, push in begin(inputs).items()}
    if teacher:
        teacher.aim(config.request.exchange_classes, {int(c): push for c, push in progress["push"].items()})
        if inputs.folds:
            teacher.fold(inputs.folds)
    average = Average(named, config.optim.ema)
    checks = Checks(
        inputs=inputs, named=named, rule=_rule(config, progress["before"]), before=progress["before"]
    )
    if start:
        _restore(named, average, optimiser, checks, start, inputs.device)

    def save() -> None:
        progress.update(step=iteration - prime, **checks.plain())
        if inputs.save:
            with phase("checkpoint"):
                trained = {name: p.detach().clone() for name, p in named.items()}
                averaged = {name: value.clone() for name, value in average.values.items()}
                moments = optimiser_moments(optimiser, list(named))
                inputs.save(
                    Checkpoint(
                        iteration=iteration,
                        trained=trained,
                        average=averaged,
                        moments=moments,
                        kept=checks.kept,
                        pending=checks.pending,
                        progress=progress,
                    )
                )

    def agreed(word: bool) -> int:
        return collectives.largest(INTERRUPTED if inputs.interrupted() else int(word))

    with Stopwatch(inputs.device.type) as watch:
        step, word = iteration - prime, NO
        waiting_since = time.perf_counter()
        for batch in timed("data", () if checks.rule.stopped or step >= last else inputs.retain(iteration)):
            started, cpu_started = time.perf_counter(), time.process_time()
            data_seconds = started - waiting_since
            if progress["first_batch"] is None:
                progress["first_batch"] = data_seconds
            iteration += 1
            step = iteration - prime
            log = train_step(
                inputs,
                batch,
                iteration,
                step,
                method=method,
                named=named,
                teacher=teacher,
                optimiser=optimiser,
            )
            with phase("optimiser"):
                average.update(named)
            seconds = time.perf_counter() - started
            progress["cpu_seconds"] += time.process_time() - cpu_started
            if step >= 1:
                progress["step_seconds"].append(round(seconds + data_seconds, 6))
            inputs.record(
                {"kind": "step", "step": step, **log, "seconds": seconds, "seconds_data": data_seconds}
            )

            due = step >= 1 and (step % config.evaluate.every == 0 or step == last)
            if due:
                checks.make(step, average.values)
            checks.collect()
            spent = (
                due
                and config.optim.max_seconds is not None
                and sum(progress["step_seconds"]) >= config.optim.max_seconds
            )
            word = agreed(checks.rule.stopped is not None or spent)
            if due or word == INTERRUPTED:
                save()
            inputs.timing({"step": step, **watch.lap(), "step_seconds": seconds + data_seconds})
            if word != NO or step >= last:
                break
            waiting_since = time.perf_counter()

    while word != INTERRUPTED and (word := agreed(bool(checks.pending))) == YES:
        checks.collect(wait_s=1.0)
    if word == INTERRUPTED:
        raise Interrupted(step, inputs.interrupted() or "another rank was told to")

    kept = _from_first(checks, average, collectives)
    with standing_in(named, kept):
        after = check(inputs, step, final=True)
    progress["final_check"] = after.seconds
    return _outcome(checks.rule, checks.missing, progress, kept, after.to_result(), last)


def train_step(
    inputs: Inputs,
    batch: Batch,
    iteration: int,
    step: int,
    *,
    method: Callable[[Step, MethodSettings], Tensor],
    named: Mapping[str, torch.nn.Parameter],
    teacher: Teacher | None,
    optimiser: torch.optim.Optimizer,
) -> dict[str, float | str]:
    """One step on this worker's share of global batch `iteration` (1, 2, ...); returns what to log."""
    config, collectives, model = inputs.config, inputs.collectives, inputs.model
    place = (
        iteration - 1,
        config.optim.batch_size,
        config.partition.lanes,
        collectives.rank,
        collectives.world,
    )
    several = shares(config, collectives.world)
    with phase("data"):
        order = share_order(
            several,
            config.partition.lanes // collectives.world,
            config.optim.batch_size // config.partition.lanes,
        )
        rows = step_rows(
            model,
            batch.take(order),
            inputs.forget.take(*place).take(order),
            inputs.exchange.take(*place).take(order) if inputs.exchange else None,
            seed=config.seed,
            step=iteration,
            device=inputs.device,
            null_fraction=config.method.null_fraction if teacher else 0.0,
            exchange_classes=config.request.exchange_classes,
            share_noise=config.method.share_noise,
        )
    settings = config.method
    own, eta = method_settings(settings.name, settings.own)
    micro = micro_batches(config, len(batch))
    # exact keeps the graphs of every micro-batch of a share at once, which is what micro-batches are there to
    # avoid
    hvp = "recompute" if micro > several and settings.hvp == "exact" else settings.hvp
    hat = _hat(inputs, iteration, len(batch))
    terms = build_terms(
        model,
        rows,
        Weights(
            exchange=settings.exchange_weight,
            targets=settings.targets,
            contrast=settings.contrast,
            eta=eta,
        ),
        teacher=teacher,
        micro_batches=micro,
        joint=hvp != "recompute",
        hat=hat,
        autocast=lambda: autocast(config.train.precision, inputs.device),
    )
    params = list(named.values())
    radius = FD_RADIUS[config.train.precision]
    this = Step(
        index=step,
        params=params,
        terms=terms,
        collectives=collectives,
        hvp=hvp,
        fd_radius=radius,
        shares=several,
    )
    gradient = method(this, own)
    collectives.require_finite({**this.local, "gradient": gradient.norm()}, step)
    lr = warmup(step, lr=config.optim.lr, warmup_steps=config.optim.warmup_steps)
    with phase("optimiser"):
        norm = apply_gradient(optimiser, params, gradient, lr=lr, clip=config.optim.clip)
    losses = {
        name.replace("loss of ", "loss/"): value
        for name, value in this.local.items()
        if name.startswith("loss of ")
    }
    reduced = collectives.mean(torch.stack([value.double() for value in losses.values()])).tolist()
    return {
        "phase": config.method.name,
        **this.log,
        **dict(zip(losses, reduced)),
        "grad_norm/update": norm,
        "lr": lr,
    }


def _begin(inputs: Inputs) -> dict[str, Any]:
    """The progress of a run that has not taken a step: what the base model measures."""
    before = inputs.before
    if before is None:
        measures = check(inputs, 0, final=True)
        before = {"result": measures.to_result(), "record": measures.to_record(0)}
    inputs.record(before["record"])
    return {"before": before["result"], "step_seconds": [], "cpu_seconds": 0.0, "first_batch": None}


def _hat(inputs: Inputs, iteration: int, rows: int) -> Callable[[], Tensor] | None:
    """The judge's pull towards the kept classes on this rank's samples, as many as it has rows; None where it
    is off."""
    weight, rank = inputs.config.method.hat_weight, inputs.collectives.rank
    if not weight:
        return None
    latents = sample_latents(
        inputs.model, range(rank * rows, (rank + 1) * rows), seed=inputs.config.seed, step=iteration
    ).to(inputs.device)
    loss = hat_loss(
        inputs.model,
        inputs.hat_judge or inputs.subject.judge,
        latents,
        inputs.subject.retained,
        inputs.collectives,
    )
    return lambda: weight * loss()


def _rule(config: UnlearnConfig, before: Mapping[str, Any]) -> SettleRule:
    # None without labels: then the mixture's overlap with itself
    evaluate, kept = config.evaluate, before["retain_accuracy"]["mean"]
    return SettleRule(
        target=(
            config.gate.max_forget_fraction
            if config.request.forgotten_classes
            else config.gate.max_membership_auc
        ),
        hold_steps=evaluate.hold_steps,
        guard=None if evaluate.guard is None else evaluate.guard * (1.0 if kept is None else kept),
        guard_checks=evaluate.guard_checks,
        max_checks=evaluate.max_checks,
        alike=config.gate.min_likeness,
    )


def _from_first(checks: Checks, average: Average, collectives: Collectives) -> dict[str, Tensor]:
    """The kept weights, as the first rank has them; those of the last step where no check could be made at
    all."""
    kept = checks.kept or average.values
    # in one order on all ranks: weights out of a checkpoint come in another
    parts = [kept[name] for name in average.values]
    return dict(zip(average.values, unflat(collectives.broadcast(flat(parts, parts)), parts), strict=True))


def _outcome(
    rule: SettleRule,
    missing: list[int],
    progress: dict[str, Any],
    kept: Mapping[str, Tensor],
    after: dict[str, Any],
    last: int,
) -> Outcome:
    spent = progress["step_seconds"]
    return Outcome(
        steps=rule.last_step or last,
        trained=kept,
        kept_step=rule.kept_step if rule.kept_step is not None else last,
        stopped=rule.stopped or "steps",
        missing=tuple(missing),
        first_crossing_step=rule.first_crossing_step,
        settled_step=rule.settled_step,
        before=progress["before"],
        after=after,
        timing={
            "seconds_to_first_batch": progress["first_batch"],
            "seconds_per_step": statistics.median(spent) if spent else None,
            "seconds_to_forget": sum(spent[: rule.settled_step]) if rule.settled_step else None,
            "step_seconds": sum(spent),
            "step_cpu_seconds": progress["cpu_seconds"],
            "final_check_seconds": progress["final_check"],
        },
    )


@torch.no_grad()
def _restore(
    named: Mapping[str, torch.nn.Parameter],
    average: Average,
    optimiser: torch.optim.Optimizer,
    checks: Checks,
    start: Checkpoint,
    device: torch.device,
) -> None:
    restore(start, named, average.values, optimiser, list(named))
    for key, value in start.progress["rule"].items():
        setattr(checks.rule, key, value)
    checks.missing = list(start.progress["missing"])
    checks.kept = {name: value.to(device) for name, value in start.kept.items()}
    checks.pending = {
        step: {name: value.to(device) for name, value in named.items()}
        for step, named in start.pending.items()
    }
    checks.resume()
