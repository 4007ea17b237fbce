"""One step's gradients: of first order, and the second-order product of the penalty, over micro-batches and
ranks.

P trained parameters. Every gradient and direction is one vector (P,), float32 or, for float64 parameters,
float64.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from models.second_order import second_order
from pipeline.runtime.stopwatch import phase
from pipeline.unlearning.collectives import Collectives, Pending
from pipeline.unlearning.parameters import flat, unflat
from pipeline.unlearning.penalty import dot

# distance at which finite differences lose least to rounding and curvature (docs/numerics.md)
FD_RADIUS = {"fp32": 2e-2, "bf16": 3e-1}
# closures whose values add up to the term's mean loss; one is held in memory at a time
Term = Sequence[Callable[[], Tensor]]


class Local(Protocol):
    """What one worker's rows give, before anything is reduced."""

    def gradient(self, name: str, *, twice: bool) -> tuple[Tensor, Tensor]: ...

    def product(self, directions: Mapping[str, Tensor]) -> Tensor: ...

    def value(self, name: str) -> Tensor: ...


@dataclass(kw_only=True)
class Gradients:
    """The gradients of step `index` (1, 2, ...; warm-up of the moments counts 0, -1, ... backwards), averaged
    over all ranks.

    A method sees this class and nothing else. It asks for gradients of named terms and, where it needs it,
    for H_f u + H_r v; it returns the vector that the optimiser gets.
    """

    index: int
    local: Local
    collectives: Collectives
    sharded: bool = False  # each rank has its part of every vector (P,), reduced already (sharding.py)
    progress: float = 0.0  # share of the run's steps that are taken, `index` among them
    memory: Mapping[str, Tensor] = field(default_factory=dict)  # what the method made at the base weights
    # the two summands of the vector, where the method says them (None: no step of that kind)
    parts: dict[str, Tensor | None] = field(default_factory=dict)
    # to be logged: numbers may still be tensors () where they were computed
    log: dict[str, float | str | Tensor] = field(default_factory=dict)
    # this rank's losses and gradient norms, to be checked for finiteness
    quantities: dict[str, Tensor] = field(default_factory=dict)

    def of(self, *names: str, twice: bool = False) -> list[Tensor]:
        """The mean gradient (P,) of each named term. A term's reduction runs while the next one is computed.

        `twice` where a `second_order_product` of the same terms will be asked for.
        """
        pending: list[Pending] = []
        for name in names:
            vector, loss = self.local.gradient(name, twice=twice)
            self.quantities[f"loss of {name}"] = loss
            self.quantities[f"gradient of {name}"] = vector.norm()
            pending.append(self._mean(vector))
        return [reduction.wait() for reduction in pending]

    def _mean(self, vector: Tensor) -> Pending:
        return Pending(vector, None, 1) if self.sharded else self.collectives.mean_async(vector)

    def total(self, products: Tensor) -> Tensor:
        """Sums over this rank's elements of vectors (P,), as over all of them. Collective where these are
        sharded."""
        return self.collectives.sum(products) if self.sharded else products

    def norm(self, vector: Tensor) -> Tensor:
        """|vector|, (), of a vector (P,)."""
        return dot(vector, vector, self.total).sqrt() if self.sharded else vector.norm()

    def value(self, name: str) -> Tensor:
        """The mean loss () of a term that needs no gradient."""
        return self.collectives.mean(self.local.value(name)).double()

    def sum_of(self, *, forget: Tensor | None = None, retain: Tensor | None = None) -> Tensor:
        """The vector that the optimiser gets as the sum of what forgets and what retains, which may be given
        to two optimisers (`optim.separate_moments`)."""
        self.parts = {"forget": forget, "retain": retain}
        given = [part for part in (forget, retain) if part is not None]
        return given[0] if len(given) == 1 else given[0] + given[1]

    def second_order_product(self, directions: Mapping[str, Tensor]) -> Tensor:
        """Sum over terms of H_term d_term (P,), averaged. The terms' gradients must have been asked for
        before, in the same order, with `twice`."""
        with phase("second_order"):
            vector = self.local.product(directions)
        self.quantities["gradient of the penalty"] = vector.norm()
        return self._mean(vector).wait()

    def mean_losses(self) -> dict[str, Tensor]:
        """The losses () of the terms that were asked for, averaged over the ranks: `loss/<term>`.
        Collective."""
        losses = {
            name.replace("loss of ", "loss/"): loss
            for name, loss in self.quantities.items()
            if name.startswith("loss of ")
        }
        means = self.collectives.mean(torch.stack([loss.double() for loss in losses.values()]))
        return dict(zip(losses, means.unbind(), strict=True))


@dataclass(kw_only=True)
class LocalGradients:
    """Gradients of the terms' closures with respect to `params`, on this worker alone.

    `hvp` is how the second-order product is made: `exact` keeps the graphs of the first pass, `recompute`
    builds them again one micro-batch at a time, `fd_central` and `fd_forward` difference first-order
    gradients at `fd_radius` from the parameters.
    """

    params: Sequence[Tensor]
    terms: Mapping[str, Term]
    hvp: str = "exact"
    fd_radius: float = 2e-2
    _graphs: dict[str, Sequence[Tensor]] = field(default_factory=dict)  # exact: gradients with their graphs
    _base: dict[str, Tensor] = field(
        default_factory=dict
    )  # fd_forward: gradients at the parameters themselves

    def gradient(self, name: str, *, twice: bool) -> tuple[Tensor, Tensor]:
        """This worker's part of a term's mean gradient (P,) and of its mean loss ()."""
        vector, loss, graph = self._first_order(name, graph=twice and self.hvp == "exact")
        if graph is not None:
            self._graphs[name] = graph
        if self.hvp == "fd_forward":
            self._base[name] = vector.clone()
        return vector, loss

    @torch.no_grad()
    def value(self, name: str) -> Tensor:
        """This worker's part of a term's mean loss ()."""
        return torch.stack([closure() for closure in self.terms[name]]).sum()

    def product(self, directions: Mapping[str, Tensor]) -> Tensor:
        """This worker's part of sum H_term d_term (P,)."""
        if self.hvp == "exact":
            vector = self._product([(self._graphs[name], d) for name, d in directions.items()])
            self.release()
            return vector
        vector = torch.zeros_like(next(iter(directions.values())))
        add = self._add_recomputed if self.hvp == "recompute" else self._add_difference
        for name, direction in directions.items():
            add(vector, name, direction)
        return vector

    def release(self) -> None:
        """Let go of the graphs of the first pass."""
        self._graphs.clear()

    def _add_recomputed(self, vector: Tensor, name: str, direction: Tensor) -> None:
        for closure in self.terms[name]:
            with second_order():
                grads = self._grads(closure(), create_graph=True)
                vector += self._product([(grads, direction)])

    def _add_difference(self, vector: Tensor, name: str, direction: Tensor) -> None:
        """H d by (g(theta + r d/|d|) - g(theta - r d/|d|)) |d| / 2r, or one-sided from the gradient already
        there."""
        length = self._length(direction)
        # of no length: the difference of two equal gradients, 0
        offset = direction * (self.fd_radius / length.clamp(min=torch.finfo(length.dtype).tiny))
        ahead = self._gradient_at(name, offset)
        if self.hvp == "fd_central":
            vector += (ahead - self._gradient_at(name, -offset)) * (length / (2 * self.fd_radius))
        else:
            vector += (ahead - self._base[name]) * (length / self.fd_radius)

    def _length(self, direction: Tensor) -> Tensor:
        return direction.norm()

    @torch.no_grad()
    def _gradient_at(self, name: str, offset: Tensor) -> Tensor:
        """The gradient of a term at theta + offset; theta comes back to the bit."""
        here = [p.detach().clone() for p in self.params]
        for p, part in zip(self.params, unflat(offset, self.params), strict=True):
            p.add_(part)
        with torch.enable_grad():
            vector, _, _ = self._first_order(name, graph=False)
        for p, value in zip(self.params, here, strict=True):
            p.copy_(value)
        return vector

    def _first_order(self, name: str, *, graph: bool) -> tuple[Tensor, Tensor, Sequence[Tensor] | None]:
        """A term's gradient (P,) and loss, added up over its closures, and with `graph` the gradient with its
        graph."""
        vector: Tensor | None = None
        total: Tensor | None = None
        graphs: Sequence[Tensor] | None = None
        for closure in self.terms[name]:
            with second_order() if graph else nullcontext():
                with phase("forward"):
                    loss = closure()
                with phase("gradients"):
                    grads = self._grads(loss, create_graph=graph)
            if graph:
                graphs = grads if graphs is None else [a + b for a, b in zip(graphs, grads, strict=True)]
            part = flat([g.detach() for g in grads], self.params)
            vector = part if vector is None else vector.add_(part)
            total = loss.detach() if total is None else total + loss.detach()
        assert vector is not None and total is not None
        return vector, total, graphs

    def _grads(self, loss: Tensor, *, create_graph: bool) -> Sequence[Tensor]:
        grads = torch.autograd.grad(loss, list(self.params), create_graph=create_graph, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(grads, self.params, strict=True)]

    def _product(self, pairs: Sequence[tuple[Sequence[Tensor], Tensor]]) -> Tensor:
        """grad of sum <gradient, direction> with respect to the parameters, (P,)."""
        outputs: list[Tensor] = []
        weights: list[Tensor] = []
        for grads, direction in pairs:
            for grad, part in zip(grads, unflat(direction, self.params), strict=True):
                if grad.requires_grad:
                    outputs.append(grad)
                    weights.append(part)
        if not outputs:
            return torch.zeros_like(pairs[0][1])
        total = _Along.apply(weights, *outputs)
        return flat(torch.autograd.grad(total, list(self.params), allow_unused=True), self.params)


class _Along(torch.autograd.Function):
    """A number whose gradient with respect to the tensors is `weights`.

    Given to `torch.autograd.grad` as `grad_outputs` they would import sympy to have their shapes compared, a
    quarter of a second of every worker's start.
    """

    @staticmethod
    def forward(ctx: Any, weights: Sequence[Tensor], *tensors: Tensor) -> Tensor:
        ctx.weights = weights
        return tensors[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.weights
