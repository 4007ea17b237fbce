"""One step's gradients: first order, and the second-order product of the penalty, over micro-batches and ranks.

A method sees this class and nothing else. It asks for global gradients of named terms and, where it needs it, for
H_f u + H_r v; it returns the vector that the optimiser gets.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.second_order import second_order
from pipeline.runtime.stopwatch import phase
from pipeline.unlearning.collectives import Collectives, Pending
from pipeline.unlearning.trainable import flat, unflat

Term = Sequence[Callable[[], Tensor]]  # closures whose values add up to the term's mean loss; one is held in memory at a time


@dataclass(kw_only=True)
class Step:
    """What a method may ask of step `index` (1, 2, ...; priming steps count 0, -1, ... backwards).

    `hvp` is how the second-order product is made: `exact` keeps the graphs of the first pass, `recompute` builds them again
    one micro-batch at a time, `fd_central` and `fd_forward` difference first-order gradients at `fd_radius` from the parameters.
    """

    index: int
    params: Sequence[Tensor]
    terms: Mapping[str, Term]
    collectives: Collectives
    hvp: str = "exact"
    fd_radius: float = 2e-2
    log: dict[str, float | str] = field(default_factory=dict)
    local: dict[str, Tensor] = field(default_factory=dict)  # this rank's losses and gradient norms, checked for finiteness
    _graphs: dict[str, Sequence[Tensor]] = field(default_factory=dict)
    _base: dict[str, Tensor] = field(default_factory=dict)  # fd_forward: this rank's gradients at the parameters themselves

    def gradients(self, *names: str, twice: bool = False) -> list[Tensor]:
        """The global mean gradient (P,) of each named term. A term's reduction runs while the next one is computed.

        With `twice` the graphs of the gradients are kept for `second_order_product` (hvp exact).
        """
        keep = twice and self.hvp == "exact"
        pending: list[Pending] = []
        for name in names:
            vector, loss = self._local_gradient(name, keep_graph=keep)
            self.local[f"loss of {name}"], self.local[f"gradient of {name}"] = loss, vector.norm()
            if self.hvp == "fd_forward":
                self._base[name] = vector.clone()
            pending.append(self.collectives.mean_async(vector))
        return [p.wait() for p in pending]

    def gradient(self, name: str) -> Tensor:
        return self.gradients(name)[0]

    def second_order_product(self, directions: Mapping[str, Tensor]) -> Tensor:
        """Sum over terms of H_term d_term (P,), global mean. The terms' gradients must have been asked for before."""
        with phase("second_order"):
            if self._graphs:
                vector = self._product([(self._graphs[name], d) for name, d in directions.items()])
                self._graphs.clear()
            elif self.hvp == "recompute":
                vector = self._recomputed(directions)
            else:
                vector = self._differenced(directions)
        self.local["gradient of the penalty"] = vector.norm()
        return self.collectives.mean(vector)

    def _recomputed(self, directions: Mapping[str, Tensor]) -> Tensor:
        vector = torch.zeros_like(next(iter(directions.values())))
        for name, direction in directions.items():
            for closure in self.terms[name]:
                with second_order():
                    grads = self._grads(closure(), create_graph=True)
                    vector += self._product([(grads, direction)])
        return vector

    def _differenced(self, directions: Mapping[str, Tensor]) -> Tensor:
        """H d by (g(theta + r d/|d|) - g(theta - r d/|d|)) |d| / 2r, or one-sided from the gradient already there."""
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
                vector += (ahead - self._base[name]) * (length / self.fd_radius)
        return vector

    @torch.no_grad()
    def _gradient_at(self, name: str, offset: Tensor) -> Tensor:
        """This rank's gradient of a term at theta + offset; theta comes back to the bit."""
        here = [p.detach().clone() for p in self.params]
        for p, part in zip(self.params, unflat(offset, self.params), strict=True):
            p.add_(part)
        with torch.enable_grad():
            vector, _ = self._local_gradient(name, keep_graph=False)
        for p, value in zip(self.params, here, strict=True):
            p.copy_(value)
        return vector

    def _local_gradient(self, name: str, *, keep_graph: bool) -> tuple[Tensor, Tensor]:
        """This rank's mean gradient (P,) of a term, and its mean loss."""
        closures = self.terms[name]
        vector: Tensor | None = None
        total: Tensor | None = None
        kept: Sequence[Tensor] | None = None
        for closure in closures:
            with second_order() if keep_graph else nullcontext():
                with phase("forward"):
                    loss = closure()
                with phase("gradients"):
                    grads = self._grads(loss, create_graph=keep_graph)
            if keep_graph:
                kept = grads if kept is None else [k + g for k, g in zip(kept, grads, strict=True)]
            part = flat([g.detach() for g in grads], self.params)
            vector = part if vector is None else vector.add_(part)
            total = loss.detach() if total is None else total + loss.detach()
        assert vector is not None and total is not None
        if kept is not None:
            self._graphs[name] = kept
        return vector, total

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
        return flat(torch.autograd.grad(outputs, list(self.params), grad_outputs=weights, allow_unused=True), self.params)
