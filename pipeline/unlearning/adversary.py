"""Adversarial label embeddings: what an attacker with the weights would put in place of a forgotten label,
followed while the weights move.

E entries in the pool, each for one forgotten class. An entry is one embedding for all timesteps, (1, D), or
every second one an embedding for each of K buckets of timesteps, (K, D). Each pair of these moves at the next
of the learning rates. N rows.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.generative import GenerativeModel
from pipeline.seeding import generator
from pipeline.unlearning.optimizer import adamw, apply_gradient
from pipeline.unlearning.parameters import label_values

SPREAD = 0.5  # of a start beside a retained row, against the deviation of the table
# (the class's own row as it was, table with the null label last, retained labels, generator) -> a start (D,)
Start = Callable[[Tensor, Tensor, Sequence[int], torch.Generator], Tensor]


def _gaussian(table: Tensor, retained: Sequence[int], g: torch.Generator) -> Tensor:
    """A row with the deviation of the retained ones and mean 0."""
    return table[list(retained)].std(0) * torch.randn(table.shape[1], generator=g).to(table)


def _beside(own: Tensor, table: Tensor, retained: Sequence[int], g: torch.Generator) -> Tensor:
    label = retained[int(torch.randint(len(retained), (), generator=g))]
    return table[label] + SPREAD * _gaussian(table, retained, g)


STARTS: tuple[Start, ...] = (
    lambda own, table, retained, g: own,
    lambda own, table, retained, g: table[list(retained)].mean(0),
    _beside,
    lambda own, table, retained, g: table[-1],
    lambda own, table, retained, g: table[list(retained)].mean(0) + _gaussian(table, retained, g),
)


class Adversary:
    """A pool of embeddings that go down the true denoising loss of the forgotten rows, one step of Adam each
    time the weights take one.

    An entry begins anew every `restart_every` steps, the entries in turn, from the next of `STARTS`. Every
    random number is keyed by (seed, step, entry), so any number of ranks follows the same pool.
    """

    def __init__(
        self,
        model: GenerativeModel,
        forgotten: Sequence[int],
        retained: Sequence[int],
        *,
        size: int,
        buckets: int,
        rates: Sequence[float],
        restart_every: int,
        seed: int,
    ) -> None:
        """At the base weights: the rows of the forgotten labels are kept as they are now. Raises `ValueError`
        for fewer entries than classes."""
        if size < len(forgotten):
            raise ValueError(
                f"redirection.pool: got {size} embeddings for {len(forgotten)} forgotten classes,"
                " expected one each at least"
            )
        self._model, self._seed = model, seed
        self._life = restart_every
        self._forgotten = sorted(forgotten)
        self._retained = list(retained)
        table = label_values(model)
        self._own = table[self._forgotten].clone()
        rounds = [index // len(forgotten) for index in range(size)]
        self._lengths = [buckets if number % 2 else 1 for number in rounds]
        self.entries = [nn.Parameter(table.new_zeros(k, table.shape[1])) for k in self._lengths]
        scales = [rates[number // 2 % len(rates)] for number in rounds]
        self.optimizer = adamw(self.entries, lr=1.0, weight_decay=0.0, scales=scales)

    @property
    def names(self) -> list[str]:
        """Of the entries, for a checkpoint."""
        return [f"adversary.{index}" for index in range(len(self.entries))]

    def slots(self, y: Tensor, places: Sequence[int]) -> Tensor:
        """The entry (N,) that each row of the forgotten classes `y` (N,) has, by its place in the global
        batch: the entries of its class in turn."""
        classes, size = len(self._forgotten), len(self.entries)
        slots = []
        for label, place in zip(y.tolist(), places, strict=True):
            first = self._forgotten.index(label)
            slots.append(first + classes * (place % len(range(first, size, classes))))
        return torch.tensor(slots, dtype=torch.long)

    def embeddings(self, slots: Tensor, t: Tensor) -> Tensor:
        """(N, D), with a graph to the entries: of the entries `slots` (N,) at the times t (N,)."""
        length = torch.tensor(self._lengths, device=slots.device)
        first = length.cumsum(0) - length
        bucket = self._model.time.bucket(t, length[slots])
        return torch.cat(list(self.entries))[first[slots] + bucket]

    @torch.no_grad()
    def renew(self, iteration: int) -> None:
        """Begin the entries anew whose turn it is before step `iteration` (1, 2, ...); at the first, all."""
        life, size = self._life, len(self.entries)
        table = label_values(self._model)
        for index, entry in enumerate(self.entries):
            number, age = divmod(iteration - 1 + index * life // size, life)
            if age and iteration > 1:
                continue
            rounds, first = divmod(index, len(self._forgotten))
            start = STARTS[(rounds + number) % len(STARTS)]
            g = generator(self._seed, "adversary", iteration, index)
            entry.copy_(start(self._own[first], table, self._retained, g).expand_as(entry))
            self.optimizer.state.pop(entry, None)

    def move(self, gradient: Tensor) -> None:
        """One step of Adam along the global `gradient` of the entries, one vector."""
        apply_gradient(self.optimizer, self.entries, gradient, lr=1.0, clip=None)

    @torch.no_grad()
    def restore(self, entries: Sequence[Tensor]) -> None:
        """Put the entries of a checkpoint back; the optimiser's moments are put back elsewhere."""
        for now, then in zip(self.entries, entries, strict=True):
            now.copy_(then)
