"""All communication of the unlearning step. Reduce first, combine second: nothing else talks to the process
group.

W ranks; buffers of any shape, the same on all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.runtime.stopwatch import phase


class NonFiniteError(RuntimeError):
    """A loss or gradient was NaN or infinite on some rank; no rank has moved its optimiser."""


@dataclass(frozen=True)
class Pending:
    """A reduction under way; `wait` returns the mean over ranks."""

    buffer: Tensor
    work: Any
    world_size: int

    def wait(self) -> Tensor:
        if self.work is not None:
            with phase("reduce"):
                self.work.wait()
                self.buffer.div_(self.world_size)
        return self.buffer


class _MeanInGraph(torch.autograd.Function):
    """Forward: mean over ranks. Backward: the cotangent is the same on all ranks and passes as it is; they
    average later."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, collectives: "Collectives") -> Tensor:
        ctx.collectives = collectives
        return collectives.mean(value.detach().clone())

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return _SameOnAllRanks.apply(cotangent, ctx.collectives), None


class _SameOnAllRanks(torch.autograd.Function):
    """Identity on what is the same on all ranks; its own cotangents are each rank's share, so backward is
    their mean."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, collectives: "Collectives") -> Tensor:
        ctx.collectives = collectives
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return _MeanInGraph.apply(cotangent, ctx.collectives), None


class Collectives:
    """Means and sums over the ranks of a process group; without one, of a single process (world 1).

    With `ordered` a mean is a recursive-doubling all-reduce wherever W is a power of two: its summation order
    does not depend on W.
    """

    def __init__(self, group: "dist.ProcessGroup | None" = None, *, ordered: bool = False):
        self._group = group
        self._active = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank(group) if self._active else 0
        self.world_size = dist.get_world_size(group) if self._active else 1
        # two have only one order
        self._ordered = ordered and self.world_size > 2 and self.world_size & (self.world_size - 1) == 0
        # where flags are reduced
        self._device = "cuda" if self.world_size > 1 and dist.get_backend(group) == "nccl" else "cpu"

    def mean_async(self, buffer: Tensor) -> Pending:
        """Start averaging `buffer` over ranks, in place."""
        if self._ordered:
            with phase("reduce"):
                return Pending(self._sum_in_order(buffer).div_(self.world_size), None, self.world_size)
        work = dist.all_reduce(buffer, group=self._group, async_op=True) if self.world_size > 1 else None
        return Pending(buffer, work, self.world_size)

    def mean(self, buffer: Tensor) -> Tensor:
        return self.mean_async(buffer).wait()

    def _sum_in_order(self, buffer: Tensor) -> Tensor:
        """Every rank and the one half of the ranks further on, then a quarter, down to its neighbour."""
        away = self.world_size // 2
        other = torch.empty_like(buffer)
        while away:
            peer = self.rank ^ away
            peer = dist.get_global_rank(self._group, peer) if self._group is not None else peer
            exchange = [
                dist.P2POp(dist.isend, buffer, peer, self._group),
                dist.P2POp(dist.irecv, other, peer, self._group),
            ]
            for work in dist.batch_isend_irecv(exchange):
                work.wait()
            buffer.add_(other)  # the same two numbers on both sides
            away //= 2
        return buffer

    def mean_in_graph(self, value: Tensor) -> Tensor:
        """The mean of `value` over ranks as part of the graph, for a loss that is no sum over rows.

        Every rank computes the same loss of it, and the ranks' gradients are averaged afterwards: their mean
        is then the gradient of that loss, and so is any further derivative. Collective, forward and in every
        second backward.
        """
        return _MeanInGraph.apply(value, self) if self.world_size > 1 else value

    def sum(self, buffer: Tensor) -> Tensor:
        """Sum `buffer` over ranks, in place."""
        if self.world_size > 1:
            with phase("reduce"):
                dist.all_reduce(buffer, group=self._group)
        return buffer

    def largest(self, value: int) -> int:
        """The largest `value` of any rank, on every rank."""
        if self.world_size == 1:
            return value
        with phase("reduce"):
            buffer = torch.tensor(value, device=self._device)
            dist.all_reduce(buffer, op=dist.ReduceOp.MAX, group=self._group)
            return int(buffer.item())

    def broadcast(self, buffer: Tensor) -> Tensor:
        """Rank 0's `buffer` on every rank, in place."""
        if self.world_size > 1:
            dist.broadcast(buffer, src=0, group=self._group)
        return buffer

    def require_finite(
        self, values: Mapping[str, Tensor], step: int, figures: Mapping[str, Tensor] | None = None
    ) -> dict[str, float]:
        """Raise `NonFiniteError` on every rank when any rank holds a non-finite value; names quantity, step
        and ranks. Returns `figures` (), which are the same on every rank, as numbers: with this read alone
        the host waits for the device."""
        names, figures = list(values), figures or {}
        flags = torch.zeros(self.world_size, len(names), device=next(iter(values.values())).device)
        flags[self.rank] = torch.stack([(~torch.isfinite(values[name]).all()).float() for name in names])
        bad = self.sum(flags).double()
        read = torch.cat([bad.flatten(), *(one.double().reshape(1) for one in figures.values())]).tolist()
        for index, name in enumerate(names):
            ranks = [rank for rank in range(self.world_size) if read[rank * len(names) + index]]
            if ranks:
                raise NonFiniteError(
                    f"step {step}: {name} is not finite on rank {', '.join(map(str, ranks))}; the optimiser"
                    " was not moved. Lower optim.lr or method.penalty, or use train.precision fp32"
                )
        return dict(zip(figures, read[bad.numel() :], strict=True))
