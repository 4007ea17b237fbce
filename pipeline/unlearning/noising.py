"""From streamed rows to what the loss takes: every random number is keyed by (seed, step, term, sample id),
never by rank.

N rows, C channels, H x W pixels or latents.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from models.diffusion import Noise
from models.generative import GenerativeModel
from pipeline.data.batch import Batch, Side
from pipeline.seeding import generator

SideT = TypeVar("SideT", bound=Side)
# (y (N,), uniform samples (N,)) -> labels for student and teacher
Relabel = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """N rows ready for the loss: x0 (posterior already sampled for latents), the label asked for, and their
    noise."""

    x0: Tensor  # (N, C, H, W)
    y: Tensor  # (N,) label the student is asked for (the null label where it is dropped)
    target_y: Tensor  # (N,) label the teacher is asked for
    noise: Noise
    target_x0: Tensor | None = None  # (N, C, H, W) what the teacher sees in x0's place, on the same noise

    def __len__(self) -> int:
        return len(self.y)

    @property
    def seen_by_teacher(self) -> Tensor:
        """(N, C, H, W)"""
        return self.x0 if self.target_x0 is None else self.target_x0

    def take(self, index: slice | Tensor) -> "Rows":
        """The rows at `index`, in that order."""
        return Rows(
            x0=self.x0[index],
            target_x0=None if self.target_x0 is None else self.target_x0[index],
            y=self.y[index],
            target_y=self.target_y[index],
            noise=Noise(t=self.noise.t[index], eps=self.noise.eps[index]),
        )

    def part(self, index: int, parts: int) -> "Rows":
        """The index-th of `parts` equal micro-batches."""
        n = len(self) // parts
        return self.take(slice(index * n, (index + 1) * n))

    def of_lanes(self, lanes: Sequence[int], count: int) -> "Rows":
        """The rows of some of the `count` lanes that these rows are of, in that order; as many of each."""
        each = len(self) // count
        return self.take(torch.tensor([lane * each + row for lane in lanes for row in range(each)]))

    def joined(self, other: "Rows") -> "Rows":
        """These rows, then those of `other`."""
        return Rows(
            x0=torch.cat([self.x0, other.x0]),
            target_x0=torch.cat([self.seen_by_teacher, other.seen_by_teacher]),
            y=torch.cat([self.y, other.y]),
            target_y=torch.cat([self.target_y, other.target_y]),
            noise=Noise(
                t=torch.cat([self.noise.t, other.noise.t]), eps=torch.cat([self.noise.eps, other.noise.eps])
            ),
        )


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """A worker's share of a step: as many rows of each kind. Without an exchange side only two kinds."""

    retain: Rows
    forget: Rows
    exchange: Rows | None

    def __len__(self) -> int:
        return len(self.retain)

    def of_lanes(self, lanes: Sequence[int], count: int) -> "StepRows":
        """The rows of some of this worker's `count` lanes, in that order."""
        return StepRows(
            retain=self.retain.of_lanes(lanes, count),
            forget=self.forget.of_lanes(lanes, count),
            exchange=None if self.exchange is None else self.exchange.of_lanes(lanes, count),
        )


def noised_rows(
    model: GenerativeModel,
    batch: Batch,
    *,
    seed: int,
    step: int,
    term: str,
    device: torch.device,
    relabel: Relabel | None = None,
) -> Rows:
    """`batch` with its noise, its labels as `relabel` says (as they are without it)."""
    latent = len(batch.stored) > 1
    draws, uniform = [], []
    for sample_id, occurrence in zip(batch.sample_id, batch.occurrence, strict=True):
        g = generator(seed, step, term, sample_id, occurrence)
        draws.append(model.sample_noise(g, latent=latent))
        uniform.append(torch.rand((), generator=g))
    rows = batch.stored_on(device)
    x0 = rows.mean
    if rows.std is not None:
        posterior = torch.stack([n.posterior for n in draws if n.posterior is not None])
        x0 = x0 + rows.std * _moved(posterior, device)
    y, target_y = relabel(batch.y, torch.stack(uniform)) if relabel else (batch.y, batch.y)
    t, eps = torch.stack([n.t for n in draws]), torch.stack([n.eps for n in draws])
    y, target_y, t, eps = (_moved(tensor, device) for tensor in (y, target_y, t, eps))
    return Rows(x0=x0, y=y, target_y=target_y, noise=Noise(t=t, eps=eps))


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On a GPU from pinned memory, so that the copy goes on while the next rows' noise is sampled."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def sample_latents(model: GenerativeModel, numbers: Sequence[int], *, seed: int, step: int) -> Tensor:
    """Normal latents (n, *latent) of the samples with these numbers in the global batch of step `step`, one
    per number."""
    assert model.latent is not None
    return torch.stack(
        [torch.randn(model.latent, generator=generator(seed, step, "sample", number)) for number in numbers]
    )


def drop_labels(
    fraction: float, null_label: int, held: Sequence[int] = (), held_fraction: float = 0.0
) -> Relabel:
    """A relabelling that gives a share of the rows the null label, and another one in turns the labels
    `held`, for student and teacher alike."""
    labels = torch.tensor([*held], dtype=torch.long)

    def relabel(y: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        dropped = torch.where(uniform < fraction, torch.full_like(y, null_label), y)
        if len(labels) and held_fraction:
            place = (uniform - fraction) / held_fraction  # in [0, 1) for rows that are held
            index = (place * len(labels)).long().clamp(0, len(labels) - 1)
            dropped = torch.where((place >= 0) & (place < 1), labels[index], dropped)
        return dropped, dropped

    return relabel


def exchange_rows(side: SideT, exchange: Mapping[int, Sequence[int]]) -> SideT:
    """The exchange side: for every forgotten class c the rows of its exchange classes, labelled c; sample ids
    stay."""
    parts = [
        (c, torch.isin(side.y, torch.tensor(es)).nonzero().flatten().tolist())
        for c, es in sorted(exchange.items())
    ]
    order = [index for _, indices in parts for index in indices]
    labels = torch.tensor([c for c, indices in parts for _ in indices], dtype=torch.long)
    return side.chosen(order, labels)


def ask_for(exchange: Mapping[int, Sequence[int]]) -> Relabel:
    """A relabelling for exchange rows against a teacher: the student is asked for a forgotten class c, the
    teacher for e(c).

    Rows of any class serve; with several forgotten classes each row takes one by its own random number. Where
    c has several exchange classes, a row of one of them asks the teacher for that one, which makes their
    mixture the optimum; any other row samples one.
    """
    forgotten = sorted(exchange)

    def ask(y: int, place: float) -> tuple[int, int]:
        index, rest = divmod(place * len(forgotten), 1.0)
        c = forgotten[int(index)]
        return c, y if y in exchange[c] else exchange[c][int(rest * len(exchange[c]))]

    def relabel(y: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [ask(label, place) for label, place in zip(y.tolist(), uniform.tolist(), strict=True)]
        student, teacher = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
        return student, teacher

    return relabel


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
    exchange_classes: Mapping[int, Sequence[int]],
    share_noise: bool,
    held: Sequence[int] = (),
    held_fraction: float = 0.0,
) -> StepRows:
    """A worker's share of one step.

    `held` are labels of classes forgotten earlier, under which a share of the retain rows is shown: the
    teacher does not sample those classes, so its answer needs no row of them.
    `exchange` are rows of the exchange classes, labelled with the forgotten ones (data targets). Without
    them, and with exchange classes to ask a teacher for, the retain rows serve a second time, on noise of
    their own.
    """
    noised = partial(noised_rows, model, seed=seed, step=step, device=device)
    labels = drop_labels(null_fraction, model.null_label, held, held_fraction)
    r = noised(retain, term="retain", relabel=labels)
    f = noised(forget, term="forget")
    x = None
    if exchange is not None:
        x = noised(exchange, term="exchange")  # labelled with the forgotten classes; no teacher is asked
    elif exchange_classes:
        x = noised(retain, term="exchange", relabel=ask_for(exchange_classes))
    if share_noise and x is not None:
        f = replace(f, noise=x.noise)
    return StepRows(retain=r, forget=f, exchange=x)
