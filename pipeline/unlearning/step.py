"""One step's gradients: first order, and the second-order product of the penalty, over micro-batches and ranks.

A method sees this class and nothing else. It asks for global gradients of named terms and, where it needs it, for
H_f u + H_r v; it returns the vector that the optimiser gets.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.unlearning.collectives import Collectives, Pending
from pipeline.unlearning.trainable import flat, unflat

Term = Sequence[Callable[[], Tensor]]  # one closure a micro-batch; each returns its mean loss, a scalar


@dataclass(kw_only=True)
class Step:
    """What a method may ask of step `index` (1, 2, ...; priming steps count 0, -1, ... backwards)."""

    index: int
    params: Sequence[Tensor]
    terms: Mapping[str, Term]
    collectives: Collectives
    hvp: str = "exact"  # exact | recompute
    log: dict[str, float | str] = field(default_factory=dict)
    local: dict[str, Tensor] = field(default_factory=dict)  # this rank's losses and gradients, checked for finiteness
    _graphs: dict[str, Sequence[Tensor]] = field(default_factory=dict)

    def gradients(self, *names: str, second_order: bool = False) -> list[Tensor]:
        """The global mean gradient (P,) of each named term. A term's reduction runs while the next one is computed.

        With `second_order` the graphs of the gradients are kept for `second_order_product`, where that is cheaper
        than computing them again (one micro-batch, hvp exact).
        """
        keep = second_order and self.hvp == "exact"
        pending: list[Pending] = []
        for name in names:
            vector = self._local_gradient(name, keep_graph=keep)
            self.local[f"gradient of {name}"] = vector
            pending.append(self.collectives.mean_async(vector.clone()))
        return [p.wait() for p in pending]

    def gradient(self, name: str) -> Tensor:
        return self.gradients(name)[0]

    def second_order_product(self, directions: Mapping[str, Tensor]) -> Tensor:
        """Sum over terms of H_term d_term (P,), global mean: one more backward through each term's gradient."""
        if self._graphs:
            vector = self._product([(self._graphs[name], d) for name, d in directions.items()])
        else:
            vector = torch.zeros_like(next(iter(directions.values())))
            for name, direction in directions.items():
                for closure in self.terms[name]:
                    with _double_backward():
                        grads = self._grads(closure() / len(self.terms[name]), create_graph=True)
                        vector += self._product([(grads, direction)])
        self._graphs.clear()
        self.local["gradient of the penalty"] = vector
        return self.collectives.mean(vector.clone())

    def _local_gradient(self, name: str, *, keep_graph: bool) -> Tensor:
        total, loss_sum = None, torch.zeros(())
        closures = self.terms[name]
        kept: list[Tensor] | None = None
        for closure in closures:
            with _double_backward() if keep_graph else nullcontext():
                loss = closure() / len(closures)
                grads = self._grads(loss, create_graph=keep_graph)
            if keep_graph:
                kept = list(grads) if kept is None else [k + g for k, g in zip(kept, grads, strict=True)]
            vector = flat([g.detach() for g in grads], self.params)
            total = vector if total is None else total.add_(vector)
            loss_sum = loss_sum + loss.detach()
        assert total is not None and isinstance(loss_sum, Tensor)
        if kept is not None:
            self._graphs[name] = kept
        self.local[f"loss of {name}"] = loss_sum
        return total

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


def _double_backward() -> AbstractContextManager[None]:
    """Fused attention has no second derivative: use the plain one where it is needed, and only there."""
    return sdpa_kernel(SDPBackend.MATH)
