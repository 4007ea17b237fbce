"""One step's gradients: first order, and the second-order product of the penalty, over micro-batches and
ranks.

A method sees this class and nothing else. It asks for global gradients of named terms and, where it needs it,
for H_f u + H_r v; it returns the vector that the optimiser gets.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.second_order import second_order
from pipeline.runtime.stopwatch import phase
from pipeline.unlearning.collectives import Collectives, Pending, paired_sum
from pipeline.unlearning.parameters import flat, unflat

# closures whose values add up to the term's mean loss; one is held in memory at a time
Term = Sequence[Callable[[], Tensor]]


@dataclass(kw_only=True)
class Step:
    """What a method may ask of step `index` (1, 2, ...; priming steps count 0, -1, ... backwards).

    `hvp` is how the second-order product is made: `exact` keeps the graphs of the first pass, `recompute`
    builds them again one micro-batch at a time, `fd_central` and `fd_forward` difference first-order
    gradients at `fd_radius` from the parameters.
    `shares` is how many workers' shares of the batch this one has: each term's closures are that many equal
    runs, one a share, and each share is worked off as the worker it stands for would do it, so that the
    result is the same to the bit.
    """

    index: int
    params: Sequence[Tensor]
    terms: Mapping[str, Term]
    collectives: Collectives
    hvp: str = "exact"
    fd_radius: float = 2e-2
    shares: int = 1
    log: dict[str, float | str] = field(default_factory=dict)
    # this rank's losses and gradient norms, checked for finiteness
    local: dict[str, Tensor] = field(default_factory=dict)
    _graphs: dict[str, Sequence[Tensor]] = field(default_factory=dict)
    # fd_forward: a share's gradients at the parameters themselves
    _base: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    _share: int = 0  # the one at work

    def gradients(self, *names: str, twice: bool = False) -> list[Tensor]:
        """The global mean gradient (P,) of each named term. A term's reduction runs while the next one is
        computed.

        With `twice` the graphs of the gradients are kept for `second_order_product` (hvp exact), unless there
        are several shares.
        """
        pending: list[Pending] = []
        for name in names:
            losses: list[Tensor] = []

            def share(name: str = name, losses: list[Tensor] = losses) -> Tensor:
                vector, loss, graph = self._share_gradient(name, graph=twice and self.hvp == "exact")
                losses.append(loss)
                if graph is not None and self.shares == 1:
                    self._graphs[name] = graph
                if self.hvp == "fd_forward":
                    self._base[name, self._share] = vector.clone()
                return vector

            vector = self._over_shares(share)
            self.local[f"loss of {name}"], self.local[f"gradient of {name}"] = (
                torch.stack(losses).sum(),
                vector.norm(),
            )
            pending.append(self.collectives.mean_async(vector))
        return [p.wait() for p in pending]

    def gradient(self, name: str) -> Tensor:
        return self.gradients(name)[0]

    def second_order_product(self, directions: Mapping[str, Tensor]) -> Tensor:
        """Sum over terms of H_term d_term (P,), global mean. The terms' gradients must have been asked for
        before, in the same order."""
        make = {"exact": self._exact, "recompute": self._recomputed}.get(self.hvp, self._differenced)
        with phase("second_order"):
            vector = self._over_shares(lambda: make(directions))
        self._graphs.clear()
        self.local["gradient of the penalty"] = vector.norm()
        return self.collectives.mean(vector)

    def _over_shares(self, local: Callable[[], Tensor]) -> Tensor:
        """`local()` of every share, added up as the ranks that the shares stand for would have been."""

        def each() -> Iterator[Tensor]:
            for index in range(self.shares):
                self._share = index
                yield local()

        return paired_sum(each())

    def _closures(self, name: str) -> Term:
        """Those of the share at work."""
        each = len(self.terms[name]) // self.shares
        return self.terms[name][self._share * each : (self._share + 1) * each]

    def _exact(self, directions: Mapping[str, Tensor]) -> Tensor:
        """Through the graphs of the first pass; with several shares these are made again, those of one share
        at a time."""
        graphs: Mapping[str, Sequence[Tensor] | None] = self._graphs
        if self.shares > 1:
            graphs = {name: self._share_gradient(name, graph=True)[2] for name in directions}
        return self._product([(graphs[name] or (), d) for name, d in directions.items()])

    def _recomputed(self, directions: Mapping[str, Tensor]) -> Tensor:
        vector = torch.zeros_like(next(iter(directions.values())))
        for name, direction in directions.items():
            for closure in self._closures(name):
                with second_order():
                    grads = self._grads(closure(), create_graph=True)
                    vector += self._product([(grads, direction)])
        return vector

    def _differenced(self, directions: Mapping[str, Tensor]) -> Tensor:
        """H d by (g(theta + r d/|d|) - g(theta - r d/|d|)) |d| / 2r, or one-sided from the gradient already
        there."""
        vector = torch.zeros_like(next(iter(directions.values())))
        for name, direction in directions.items():
            length = direction.norm()
            if length == 0:
                continue
            offset = direction * (self.fd_radius / length)
            ahead = self._gradient_at(name, offset)
            if self.hvp == "fd_central":
                vector += (ahead - self._gradient_at(name, -offset)) * (length / (2 * self.fd_radius))
            else:
                vector += (ahead - self._base[name, self._share]) * (length / self.fd_radius)
        return vector

    @torch.no_grad()
    def _gradient_at(self, name: str, offset: Tensor) -> Tensor:
        """The share's gradient of a term at theta + offset; theta comes back to the bit."""
        here = [p.detach().clone() for p in self.params]
        for p, part in zip(self.params, unflat(offset, self.params), strict=True):
            p.add_(part)
        with torch.enable_grad():
            vector, _, _ = self._share_gradient(name, graph=False)
        for p, value in zip(self.params, here, strict=True):
            p.copy_(value)
        return vector

    def _share_gradient(self, name: str, *, graph: bool) -> tuple[Tensor, Tensor, Sequence[Tensor] | None]:
        """The share's part of a term's mean gradient (P,) and of its mean loss, and with `graph` the gradient
        with its graph."""
        vector: Tensor | None = None
        total: Tensor | None = None
        kept: Sequence[Tensor] | None = None
        for closure in self._closures(name):
            with second_order() if graph else nullcontext():
                with phase("forward"):
                    loss = closure()
                with phase("gradients"):
                    grads = self._grads(loss, create_graph=graph)
            if graph:
                kept = grads if kept is None else [k + g for k, g in zip(kept, grads, strict=True)]
            part = flat([g.detach() for g in grads], self.params)
            vector = part if vector is None else vector.add_(part)
            total = loss.detach() if total is None else total + loss.detach()
        assert vector is not None and total is not None
        return vector, total, kept

    def _grads(self, loss: Tensor, *, create_graph: bool) -> Sequence[Tensor]:
        grads = torch.autograd.grad(loss, list(self.params), create_graph=create_graph, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(grads, self.params, strict=True)]

    def _product(self, pairs: Sequence[tuple[Sequence[Tensor], Tensor]]) -> Tensor:
        """grad of sum <gradient, direction> with respect to the parameters, (P,)."""
        outputs, weights = [], []
        for grads, direction in pairs:
            for grad, part in zip(grads, unflat(direction, self.params), strict=True):
                if grad.requires_grad:
                    outputs.append(grad)
                    weights.append(part)
        if not outputs:
            return torch.zeros_like(pairs[0][1])
        return flat(
            torch.autograd.grad(outputs, list(self.params), grad_outputs=weights, allow_unused=True),
            self.params,
        )
