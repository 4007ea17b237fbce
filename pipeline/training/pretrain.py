"""Training a small DiT and its judge from a lake's rows in memory, data-parallel with the same collectives as
unlearning.

The global batch and its noise are functions of (seed, step), so any number of ranks trains the same model,
and a training that was interrupted goes on to the same bits.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.generative import GenerativeModel
from models.judge import Judge
from models.resnet_judge import recalibrate, shifted
from pipeline.data.batch import Batch
from pipeline.data.cycle import Cycle
from pipeline.runtime.precision import autocast
from pipeline.seeding import generator
from pipeline.training.checkpoint import Checkpoint, optimiser_moments, restore
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.noising import drop_labels, noised_rows
from pipeline.unlearning.optimizer import Average, adamw, apply_gradient, warmup_cosine
from pipeline.unlearning.parameters import flat

RECALIBRATED = 20  # batches over which a judge's batch norm takes its statistics in the end
LANES = 8  # worker counts that divide this see the same batches


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """How a training outlives its process: where it goes on from and, on one rank, what writes a checkpoint
    every `every_s` seconds."""

    start: Checkpoint | None
    save: Callable[[Checkpoint], object] | None
    every_s: float


def fit(
    net: nn.Module,
    loss_at: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    warmup_steps: int,
    clip: float | None,
    weight_decay: float,
    ema: float,
    collectives: Collectives,
    progress: Callable[[int, float], None],
    keeping: Keeping | None = None,
) -> None:
    """Minimise the mean over ranks of `loss_at(step)` over the trainable parameters of `net`; leaves their
    averages in place."""
    named = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    params = list(named.values())
    optimiser = adamw(params, lr=lr, weight_decay=weight_decay)
    average = Average(named, ema)
    moving = {**named, **dict(net.named_buffers())}
    first = 1
    if keeping and keeping.start:
        restore(keeping.start, moving, average.values, optimiser, list(named))
        first = keeping.start.iteration + 1
    kept_at = time.monotonic()
    for step in range(first, steps + 1):
        loss = loss_at(step)
        gradient = flat(torch.autograd.grad(loss, params, allow_unused=True), params)
        local = {"loss": loss.detach(), "gradient": gradient.clone()}
        gradient = collectives.mean(gradient)
        collectives.require_finite(local, step)
        apply_gradient(
            optimiser,
            params,
            gradient,
            lr=warmup_cosine(step, lr=lr, warmup_steps=warmup_steps, total=steps),
            clip=clip,
        )
        average.update(named)
        progress(step, loss.item())
        if keeping and keeping.save and (step == steps or time.monotonic() - kept_at >= keeping.every_s):
            moments = optimiser_moments(optimiser, list(named))
            keeping.save(Checkpoint(iteration=step, trained=moving, average=average.values, moments=moments))
            kept_at = time.monotonic()
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(average.values[name])


def train_dit(
    model: GenerativeModel,
    rows: Batch,
    *,
    seed: int,
    batch_size: int,
    label_dropout: float,
    device: torch.device,
    collectives: Collectives,
    precision: str = "fp32",
    **options: object,
) -> None:
    """Train `model` on `rows` with its own loss and a share of null labels."""
    cycle = Cycle(rows, seed, "pretrain")
    relabel = drop_labels(label_dropout, model.null_label)

    def loss_at(step: int) -> Tensor:
        batch = cycle.take(step - 1, batch_size, LANES, collectives.rank, collectives.world_size)
        noised = noised_rows(
            model, batch, seed=seed, step=step, term="pretrain", device=device, relabel=relabel
        )
        with autocast(precision, device):
            return model.losses(model.net, noised.x0, noised.y, noised.noise).mean()

    fit(model.net, loss_at, collectives=collectives, **options)  # type: ignore[arg-type]


def train_judge(
    judge: Judge,
    rows: Batch,
    *,
    seed: int,
    batch_size: int,
    noise: float,
    device: torch.device,
    collectives: Collectives,
    shift: int = 0,
    label_smoothing: float = 0.0,
    precision: str = "fp32",
    **options: object,
) -> None:
    """Train `judge` by cross-entropy on `rows` of pixels with Gaussian noise of deviation `noise` added,
    moved by up to `shift` pixels.

    Of each target `label_smoothing` is spread evenly over the classes (Szegedy et al. 2016, section 7).
    """
    cycle = Cycle(rows, seed, "judge")

    def seen(step: int, rank: int, world_size: int) -> tuple[Tensor, Tensor]:
        batch = cycle.take(step - 1, batch_size, LANES, rank, world_size)
        keys = [generator(seed, "judge", *key) for key in zip(batch.sample_id, batch.occurrence)]
        x = batch.mean + noise * torch.stack(
            [torch.randn(batch.mean.shape[1:], generator=key) for key in keys]
        )
        if shift:
            x = shifted(
                x, torch.stack([torch.randint(2 * shift + 1, (2,), generator=key) for key in keys]), shift
            )
        return x.to(device), batch.y.to(device)

    def loss_at(step: int) -> Tensor:
        x, y = seen(step, collectives.rank, collectives.world_size)
        with autocast(precision, device):
            return F.cross_entropy(judge.logits(x).float(), y, label_smoothing=label_smoothing)

    judge.net.train()
    fit(judge.net, loss_at, collectives=collectives, **options)  # type: ignore[arg-type]
    recalibrate(judge.net, (seen(step, 0, 1)[0] for step in range(1, RECALIBRATED + 1)))
    judge.net.eval()


@torch.no_grad()
def judge_accuracy(judge: Judge, rows: Batch, *, device: torch.device) -> float:
    """Share of `rows` that the judge calls by their label."""
    right = 0
    for start in range(0, len(rows), 512):
        part = rows.take(slice(start, start + 512))
        right += int((judge.logits(part.mean.to(device)).argmax(1).cpu() == part.y).sum())
    return right / len(rows)
