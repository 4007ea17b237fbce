"""From streamed rows to what the loss takes: every draw is keyed by (seed, step, term, sample id), never by rank."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from models.diffusion import Noise
from models.generative import GenerativeModel
from pipeline.data.rows import Batch
from pipeline.seeding import generator
from pipeline.unlearning.objectives import Rows, StepRows


def draw_rows(
    model: GenerativeModel,
    batch: Batch,
    *,
    seed: int,
    step: int,
    term: str,
    device: torch.device,
    relabel: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Rows:
    """`batch` with its noise. `relabel` maps (y (N,), uniform draws (N,)) to the labels for student and teacher."""
    latent = batch.std is not None
    draws, uniform = [], []
    for sample_id, draw in zip(batch.sample_id, batch.draw, strict=True):
        g = generator(seed, step, term, sample_id, draw)
        draws.append(model.draw(g, latent=latent))
        uniform.append(torch.rand((), generator=g))
    x0 = batch.mean
    if batch.std is not None:
        x0 = x0 + batch.std * torch.stack([n.posterior for n in draws if n.posterior is not None])
    y, target_y = relabel(batch.y, torch.stack(uniform)) if relabel else (batch.y, batch.y)
    noise = Noise(t=torch.stack([n.t for n in draws]).to(device), eps=torch.stack([n.eps for n in draws]).to(device))
    return Rows(x0=x0.to(device), y=y.to(device), target_y=target_y.to(device), noise=noise)


def drop_labels(fraction: float, null_label: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A relabelling that gives a share of the rows the null label, for student and teacher alike."""

    def relabel(y: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        dropped = torch.where(uniform < fraction, torch.full_like(y, null_label), y)
        return dropped, dropped

    return relabel


def exchange_rows(batch: Batch, exchange: Mapping[int, int]) -> Batch:
    """The exchange side: for every forgotten class c the rows of e(c), labelled c; sample ids stay."""
    parts = [(c, (batch.y == e).nonzero().flatten().tolist()) for c, e in sorted(exchange.items())]
    order = [index for _, indices in parts for index in indices]
    labels = torch.tensor([c for c, indices in parts for _ in indices], dtype=torch.long)
    rows = batch.take(order)
    return Batch(sample_id=rows.sample_id, draw=rows.draw, y=labels, mean=rows.mean, std=rows.std)


def step_rows(
    model: GenerativeModel,
    retain: Batch,
    forget: Batch,
    exchange: Batch | None,
    *,
    seed: int,
    step: int,
    device: torch.device,
    null_fraction: float,
    exchange_classes: Mapping[int, int],
    share_noise: bool,
) -> StepRows:
    """A worker's share of one step. Exchange rows ask the student for c and the teacher for e(c)."""

    def to_exchange(y: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        return y, torch.tensor([exchange_classes[int(label)] for label in y], dtype=torch.long)

    draw = {"seed": seed, "step": step, "device": device}
    r = draw_rows(model, retain, term="retain", relabel=drop_labels(null_fraction, model.null_label), **draw)  # type: ignore[arg-type]
    x = None if exchange is None else draw_rows(model, exchange, term="exchange", relabel=to_exchange, **draw)  # type: ignore[arg-type]
    f = draw_rows(model, forget, term="forget", **draw)  # type: ignore[arg-type]
    if share_noise and x is not None:
        f = Rows(x0=f.x0, y=f.y, target_y=f.target_y, noise=x.noise)
    return StepRows(retain=r, forget=f, exchange=x)
