"""A run with fewer workers than it may have, and the same to the bit: a worker stands in for those that are
missing.

The lanes of the global batch are dealt out evenly over W workers. Where an elastic run's full company of F
workers is short, each of the W there are holds the rows of F / W virtual ranks. It works them off one by one
as those workers would, and adds up in the order in which their gradients would have been reduced.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.config import UnlearnConfig
from pipeline.unlearning.gradients import Local, LocalGradients
from pipeline.unlearning.noising import StepRows
from pipeline.unlearning.redirection import RedirectionRows

AnyRows = StepRows | RedirectionRows
# rows of a step, and which one it is -> their gradients, to be asked for
Differentiate = Callable[[Any, int], Local]


def usable_world_size(lanes: int, alive: int) -> int:
    """The largest number of workers, at most `alive`, that divides the lanes."""
    return max(world_size for world_size in range(1, alive + 1) if lanes % world_size == 0)


def micro_batches(config: UnlearnConfig, rows: int) -> int:
    """Into how many equal parts a worker cuts its `rows` of each kind.

    An elastic run with fewer workers than it may have has more rows on each: they are cut so that none holds
    more at once than it would in full company.
    """
    train, optim = config.train, config.optim
    rows_at_once = optim.micro_batch or rows
    if train.fewest < train.most and optim.micro_batch is None:
        rows_at_once = optim.batch_size // usable_world_size(config.partition.lanes, train.most)
    return next(parts for parts in range(1, rows + 1) if rows % parts == 0 and rows // parts <= rows_at_once)


def cut(config: UnlearnConfig, rows: int) -> tuple[int, str]:
    """Into how many micro-batches `rows` of each kind are cut, and how second-order products are made."""
    micro = micro_batches(config, rows)
    # exact keeps the graphs of all micro-batches at once, which is what micro-batches are there to avoid
    return micro, "recompute" if micro > 1 and config.method.hvp == "exact" else config.method.hvp


def virtual_ranks(config: UnlearnConfig, world_size: int) -> int:
    """How many ranks each of `world` workers stands for. More than one needs powers of two and losses that
    are sums over rows: 1 otherwise, where the result is the same up to rounding."""
    train = config.train
    full = usable_world_size(config.partition.lanes, train.most)
    count, rest = divmod(full, world_size)
    powers = full & (full - 1) == 0 and not rest
    return count if train.fewest < train.most and powers and not config.method.uniformity_weight else 1


def over_virtual_ranks(
    differentiate: Callable[[AnyRows, int], LocalGradients], config: UnlearnConfig, world_size: int
) -> Differentiate:
    """`differentiate` as it is, or of each virtual rank's rows."""
    count, lanes = virtual_ranks(config, world_size), config.partition.lanes
    if count == 1:
        return differentiate
    orders = rank_rows(count, lanes // world_size, 1)

    def each(rows: AnyRows, iteration: int) -> Local:
        return VirtualRanks(
            [differentiate(rows.of_lanes(order, lanes // world_size), iteration) for order in orders]
        )

    return each


def rank_rows(count: int, lanes: int, each: int) -> list[list[int]]:
    """Where in a worker's rows (`lanes` lanes of `each` rows, in turn) those of its `count` virtual ranks
    lie.

    Rank j has every `count`-th lane from the j-th on, as the worker `j * world` further on would. The ranks
    come in the order in which neighbours, then pairs of them are added up as those workers' gradients are.
    """
    ranks = [0]
    while len(ranks) < count:  # 0 2 1 3, then 0 4 2 6 1 5 3 7: each and the one half of them further on
        ranks = [2 * j for j in ranks] + [2 * j + 1 for j in ranks]
    return [[lane * each + row for lane in range(j, lanes, count) for row in range(each)] for j in ranks]


@dataclass(frozen=True)
class VirtualRanks:
    """The gradients of 2^k ranks on one worker: their mean. Graphs are held of one rank at a time."""

    ranks: Sequence[LocalGradients]

    def gradient(self, name: str, *, twice: bool) -> tuple[Tensor, Tensor]:
        losses: list[Tensor] = []

        def each() -> Iterator[Tensor]:
            for rank in self.ranks:
                vector, loss = rank.gradient(name, twice=twice)
                rank.release()
                losses.append(loss)
                yield vector

        vector = paired_sum(each())
        return vector.div_(len(self.ranks)), torch.stack(losses).mean()

    def value(self, name: str) -> Tensor:
        return paired_sum(rank.value(name) for rank in self.ranks).div_(len(self.ranks))

    def product(self, directions: Mapping[str, Tensor]) -> Tensor:
        def each() -> Iterator[Tensor]:
            for rank in self.ranks:
                if rank.hvp == "exact":  # the graphs of the first pass, made again
                    for name in directions:
                        rank.gradient(name, twice=True)
                yield rank.product(directions)

        return paired_sum(each()).div_(len(self.ranks))


def paired_sum(vectors: Iterable[Tensor]) -> Tensor:
    """The sum of 2^k vectors, neighbours first, then neighbouring pairs and so on; made in place, at most
    k + 1 of them are held."""
    partial_sums: list[tuple[int, Tensor]] = []  # (how many went into it, their sum)
    for vector in vectors:
        count = 1
        while partial_sums and partial_sums[-1][0] == count:
            vector, count = partial_sums.pop()[1].add_(vector), 2 * count
        partial_sums.append((count, vector))
    assert len(partial_sums) == 1
    return partial_sums[0][1]
