"""What a measure is given: the models side by side, the judge, the rows, and what was
asked to be forgotten."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from models.features.table import FeatureSpace
from models.generative import GenerativeModel
from models.judge import Judge
from pipeline.config.measuring import Measuring
from pipeline.data.batch import Batch

AFTER, BEFORE, GOLD = "after", "before", "gold"
Rows = Callable[[Sequence[int], Literal["train", "heldout"]], Batch]


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The question, as plain data: which classes were to be forgotten, which are kept, how much is drawn."""

    forgotten: tuple[int, ...]
    exchange: Mapping[int, Sequence[int]]
    retained: tuple[int, ...]
    neighbours: tuple[int, ...]
    null_label: int
    timesteps: int
    seed: int
    settings: Measuring
    conditional: bool = True  # whether the model draws what a label asks for
    sample_ids: tuple[str, ...] = ()  # where samples are named, the forgotten rows; `forgotten` is then empty
    sample_classes: tuple[int, ...] = ()  # the classes they are of


@dataclass(frozen=True, kw_only=True)
class Bench:
    """`model` is what is measured, `base` the same before it forgot, `gold` one that never saw what it forgot
    (None: there is none).

    `rows(labels, split)` reads rows of the lake, by class and sample id. `spaces`: where distances are taken
    beside the judge's features.
    """

    model: GenerativeModel
    base: GenerativeModel | None
    judge: Judge
    scope: Scope
    rows: Rows
    to_pixels: Callable[[Tensor], Tensor] = lambda x: x
    spaces: Mapping[str, FeatureSpace] = field(default_factory=dict)
    gold: GenerativeModel | None = None

    @property
    def sides(self) -> dict[str, GenerativeModel]:
        """The models that are measured alike, by name."""
        there = {AFTER: self.model, BEFORE: self.base, GOLD: self.gold}
        return {side: model for side, model in there.items() if model is not None}

    @property
    def device(self) -> torch.device:
        return next(self.judge.net.parameters()).device


def pick(rows: Batch, n: int, seed: int, purpose: str) -> Batch:
    """At most `n` of `rows`, chosen by (seed, purpose) and kept in their order."""
    from pipeline.seeding import generator

    if len(rows) <= n:
        return rows
    chosen = torch.randperm(len(rows), generator=generator(seed, purpose))[:n]
    return rows.take(sorted(chosen.tolist()))
