"""The unlearning run on one worker: a plain loop that Ray Train, torchrun or a single process may call.

Per step: fetch, draw, gradients (the method), finite?, clip and move, average, log; every few steps a check on fresh
noise; it ends when the settling rule is satisfied or the steps are spent.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from models.generative import GenerativeModel
from pipeline.config import UnlearnConfig
from pipeline.data.cycle import Cycle
from pipeline.data.rows import Batch
from pipeline.evaluation.measure import Measures, Subject, measure
from pipeline.evaluation.settle import SettleRule
from pipeline.training.checkpoint import Checkpoint, optimiser_moments, restore_moments
from pipeline.training.draws import step_rows
from pipeline.training.optimiser import Average, adamw, apply_gradient, warmup
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.methods import METHODS
from pipeline.unlearning.objectives import Teacher, Weights, build_terms
from pipeline.unlearning.settings import MethodSettings
from pipeline.unlearning.step import Step
from pipeline.unlearning.trainable import select

FD_RADIUS = {"fp32": 2e-2, "bf16": 3e-1}  # distance at which finite differences lose least to rounding and curvature (docs/numerics.md)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What one worker's run is made of. `retain(start)` streams its rows of the global batches from `start` on.

    `exchange` holds rows of the exchange classes for data targets; against a teacher the retain rows serve.
    """

    config: UnlearnConfig
    model: GenerativeModel  # base weights loaded, on `device`
    subject: Subject
    retain: Callable[[int], Iterator[Batch]]
    forget: Cycle
    exchange: Cycle | None
    collectives: Collectives
    device: torch.device
    before: dict[str, Any] | None = None  # {"result", "record"} of the base model, where it was measured already
    record: Callable[[dict[str, Any]], None] = lambda record: None  # a line of metrics.jsonl
    save: Callable[[Checkpoint], None] = lambda checkpoint: None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to. `trained` are the weights to register; `progress` is plain data for result.json."""

    steps: int
    trained: Mapping[str, Tensor]
    first_crossing_step: int | None
    settled_step: int | None
    before: dict[str, Any]
    after: dict[str, Any]
    timing: dict[str, float | None]


def unlearn(inputs: Inputs, start: Checkpoint | None = None) -> Outcome:
    """Run from the base weights, or go on from `start` as if it had never stopped."""
    config, model = inputs.config, inputs.model
    named = select(model, config.trainable)
    params, names = list(named.values()), list(named)
    teacher = Teacher(model, named) if config.method.targets == "teacher" or config.method.name == "esd" else None
    optimiser = adamw(params, lr=config.optim.lr, weight_decay=config.optim.weight_decay)
    average = Average(named, config.optim.ema)
    target = config.gate.max_forget_fraction if config.request.forgotten_classes else config.gate.max_membership_auc
    rule = SettleRule(target=target, hold_steps=config.evaluate.hold_steps)
    method, prime = METHODS[config.method.name], config.optim.prime_steps
    model.net.train()

    if start is None:
        before = inputs.before
        if before is None:
            measures = _check(inputs, 0, final=True)
            before = {"result": measures.to_result(), "record": measures.to_record(0)}
        inputs.record(before["record"])
        progress: dict[str, Any] = {"before": before["result"], "step_seconds": [], "cpu_seconds": 0.0, "first_batch": None}
        iteration = 0
    else:
        _restore(named, average, optimiser, rule, start)
        progress, iteration = dict(start.progress), start.iteration

    step = iteration - prime
    waiting_since = time.perf_counter()
    for batch in () if rule.done or step >= config.optim.max_steps else inputs.retain(iteration):
        started, cpu_started = time.perf_counter(), time.process_time()
        data_seconds = started - waiting_since
        if progress["first_batch"] is None:
            progress["first_batch"] = data_seconds
        iteration += 1
        step = iteration - prime
        log = train_step(inputs, batch, iteration, step, method=method, named=named, teacher=teacher, optimiser=optimiser)
        average.update(named)
        seconds = time.perf_counter() - started
        progress["cpu_seconds"] += time.process_time() - cpu_started
        if step >= 1:
            progress["step_seconds"].append(round(seconds + data_seconds, 6))
        inputs.record({"kind": "step", "step": step, **log, "seconds": seconds, "seconds_data": data_seconds})

        due = step >= 1 and (step % config.evaluate.every == 0 or step == config.optim.max_steps)
        if due:
            with averaged(named, average):
                check = _check(inputs, step, final=False)
            rule.observe(step, check.decisive)
            inputs.record(check.to_record(step))
            progress |= {"rule": asdict(rule), "step": step}
            inputs.save(
                Checkpoint(
                    iteration=iteration,
                    trained={name: p.detach().clone() for name, p in named.items()},
                    average={name: value.clone() for name, value in average.values.items()},
                    moments=optimiser_moments(optimiser, names),
                    progress=progress,
                )
            )
        if rule.done or step >= config.optim.max_steps:
            break
        waiting_since = time.perf_counter()

    with averaged(named, average):
        after = _check(inputs, step, final=True)
    spent = progress["step_seconds"]
    return Outcome(
        steps=step,
        trained=dict(average.values),
        first_crossing_step=rule.first_crossing_step,
        settled_step=rule.settled_step,
        before=progress["before"],
        after=after.to_result(),
        timing={
            "seconds_to_first_batch": progress["first_batch"],
            "seconds_per_step": statistics.median(spent) if spent else None,
            "seconds_to_forget": sum(spent[: rule.settled_step]) if rule.settled_step else None,
            "step_seconds": sum(spent),
            "step_cpu_seconds": progress["cpu_seconds"],
        },
    )


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
    place = (iteration - 1, config.optim.batch_size, config.partition.lanes, collectives.rank, collectives.world)
    rows = step_rows(
        model,
        batch,
        inputs.forget.take(*place),
        inputs.exchange.take(*place) if inputs.exchange else None,
        seed=config.seed,
        step=iteration,
        device=inputs.device,
        null_fraction=config.method.null_fraction if teacher else 0.0,
        exchange_classes=config.request.exchange_classes,
        share_noise=config.method.share_noise,
    )
    settings = config.method
    micro = len(batch) // (config.optim.micro_batch or len(batch))
    # exact keeps the graphs of every micro-batch at once, which is what micro-batches are there to avoid
    hvp = "recompute" if micro > 1 and settings.hvp == "exact" else settings.hvp
    terms = build_terms(
        model,
        rows,
        Weights(exchange=settings.exchange_weight, targets=settings.targets, contrast=settings.contrast),
        teacher=teacher,
        micro_batches=micro,
        joint=hvp != "recompute",
        autocast=lambda: _autocast(config.train.precision, inputs.device),
    )
    params = list(named.values())
    radius = FD_RADIUS[config.train.precision]
    this = Step(index=step, params=params, terms=terms, collectives=collectives, hvp=hvp, fd_radius=radius)
    gradient = method(this, MethodSettings(penalty=settings.penalty, surgery_every=settings.surgery_every))
    collectives.require_finite({**this.local, "gradient": gradient.norm()}, step)
    lr = warmup(step, lr=config.optim.lr, warmup_steps=config.optim.warmup_steps)
    norm = apply_gradient(optimiser, params, gradient, lr=lr, clip=config.optim.clip)
    losses = {name.replace("loss of ", "loss/"): value for name, value in this.local.items() if name.startswith("loss of ")}
    reduced = collectives.mean(torch.stack([value.double() for value in losses.values()])).tolist()
    return {"phase": config.method.name, **this.log, **dict(zip(losses, reduced)), "grad_norm/update": norm, "lr": lr}


def _check(inputs: Inputs, step: int, *, final: bool) -> Measures:
    """Measure on noise of its own: every check has fresh seeds; before and after share theirs, so they can be compared in pairs."""
    evaluate = inputs.config.evaluate
    return measure(
        inputs.model,
        inputs.subject,
        inputs.collectives,
        forget_samples=evaluate.final_samples if final else evaluate.samples,
        retain_samples=evaluate.final_retain_samples if final else evaluate.retain_samples,
        seed=inputs.config.seed,
        purpose="final" if final else f"check at {step}",
        cfg_scale=evaluate.cfg_scale,
        steps=evaluate.final_sampler_steps if final else evaluate.sampler_steps,
        batch=evaluate.batch,
    )


class averaged:
    """Context: the averaged weights stand in for the trained ones."""

    def __init__(self, named: Mapping[str, torch.nn.Parameter], average: Average):
        self._named, self._average = named, average

    def __enter__(self) -> None:
        self._trained = {name: p.detach().clone() for name, p in self._named.items()}
        self._copy(self._average.values)

    def __exit__(self, *exception: object) -> None:
        self._copy(self._trained)

    @torch.no_grad()
    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._named.items():
            parameter.copy_(values[name])


@torch.no_grad()
def _restore(
    named: Mapping[str, torch.nn.Parameter], average: Average, optimiser: torch.optim.Optimizer, rule: SettleRule, start: Checkpoint
) -> None:
    for name, parameter in named.items():
        parameter.copy_(start.trained[name])
        average.values[name].copy_(start.average[name])
    restore_moments(optimiser, list(named), start.moments)
    for key, value in start.progress.get("rule", {}).items():
        setattr(rule, key, value)


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
