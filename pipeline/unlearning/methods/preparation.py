"""What a method may make once, at the base weights, and what its own losses are computed with.

N rows, P trained parameters. Everything here is the same on every rank, to the bit: each rank goes over the
same rows in the same order, whatever share of a step is its own. It is made again when a run goes on.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.generative import GenerativeModel
from pipeline.data.batch import Batch, Side
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.noising import Rows, noised_rows
from pipeline.unlearning.parameters import flat
from pipeline.unlearning.teacher import Teacher

ROWS_AT_ONCE = 64
RETAINED_LABELS = 16  # of which retained rows are read for an estimate


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The base model, the rows to forget and the request, before the first step."""

    model: GenerativeModel
    named: Mapping[str, Tensor]  # the trained parameters
    forget: Side  # all rows to forget
    rows_of: Callable[[Sequence[int]], Batch]  # retained rows of some classes
    retained: Sequence[int]  # labels that are kept
    exchange: Mapping[int, Sequence[int]]
    settings: Any
    seed: int
    device: torch.device
    collectives: Collectives

    def noised(self, batch: Batch, term: str, *, step: int = 0) -> Rows:
        return noised_rows(self.model, batch, seed=self.seed, step=step, term=term, device=self.device)

    def losses(self, rows: Rows) -> Tensor:
        """The model's own training loss of each row (N,)."""
        return self.model.losses(self.model.net, rows.x0, rows.y, rows.noise)

    def some_retained(self, count: int) -> Batch:
        """About `count` retained rows, spread over the labels; over all of them where those have no rows, as
        in a lake of a part of the classes."""
        rows = self.rows_of(spread(self.retained, RETAINED_LABELS))
        rows = rows if len(rows) else self.rows_of(self.retained)
        return rows.take(spread(range(len(rows)), count))


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a method keeps of its preparation for the whole run."""

    vectors: Mapping[str, Tensor] = field(default_factory=dict)  # (P,) each
    replay: Batch | None = None  # rows that are trained on in the retained ones' place
    siblings: Mapping[int, Batch] = field(default_factory=dict)  # by label, rows to pair the forgotten with


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What a loss of a method's own is computed with."""

    model: GenerativeModel
    teacher: Teacher | None
    settings: Any
    named: Mapping[str, Tensor]  # the trained parameters as they are now
    memory: Mapping[str, Tensor]  # the vectors of the method's memory


def spread(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of `items`, evenly spaced."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def mean_gradient(preparation: Preparation, side: Side, term: str) -> Tensor:
    """The gradient (P,) of the mean training loss over all rows of `side`, one noise a row."""
    params, total = list(preparation.named.values()), torch.zeros(())
    for start in range(0, len(side), ROWS_AT_ONCE):
        rows = preparation.noised(side.take(slice(start, start + ROWS_AT_ONCE)), term)
        loss = preparation.losses(rows).sum() / len(side)
        total = total.to(loss) + flat(torch.autograd.grad(loss, params, allow_unused=True), params)
    return total


def fisher_diagonal(params: Sequence[Tensor], losses: Iterable[Callable[[], Tensor]]) -> Tensor:
    """The mean square (P,) of the gradients of `losses`: the diagonal of the empirical Fisher information."""
    total, count = torch.zeros(()), 0
    for loss in losses:
        vector = flat(torch.autograd.grad(loss(), list(params), allow_unused=True), params)
        total, count = total.to(vector) + vector.square_(), count + 1
    return total / count
