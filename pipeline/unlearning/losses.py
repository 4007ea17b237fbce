"""The losses of a step, L_r, L_x and L_f, as closures over micro-batches (docs/numerics.md has the
definitions).

A worker's step has B rows of each kind, cut into M micro-batches of B / M; every closure gives (), and those
of a term add up to its mean loss.
"""

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.diffusion import Anchor
from models.generative import GenerativeModel
from pipeline.unlearning.gradients import Term
from pipeline.unlearning.noising import Rows, StepRows
from pipeline.unlearning.teacher import TargetsOnce, Teacher


@dataclass(frozen=True, kw_only=True)
class Weights:
    """How the terms are put together."""

    exchange: float = 1.0
    targets: str = "data"
    contrast: bool = False


def build_terms(
    model: GenerativeModel,
    rows: StepRows,
    weights: Weights,
    *,
    teacher: Teacher | None,
    micro_batches: int = 1,
    joint: bool = True,
    hat: Callable[[], Tensor] | None = None,
    own: Mapping[str, Callable[[Rows], Tensor]] | None = None,
    penalties: Mapping[str, Callable[[], Tensor]] | None = None,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Term]:
    """`retain` (L_r), `keep` (L_r + w L_x), `forget` (L_f) and a method's `own` losses of forget rows, cut
    into micro-batches; its `penalties` are of the weights alone and taken whole.

    `joint` runs retain and exchange rows of a micro-batch in one forward; without it they take turns, in half
    the memory.
    `hat`, weighted already, is added whole to L_r and to L_f, as the paper does.
    """

    def each(*makes: Callable[[int, Anchor], Tensor]) -> list[Callable[[], Tensor]]:
        def closure(make: Callable[[int, Anchor], Tensor], index: int) -> Callable[[], Tensor]:
            anchor = Anchor()

            def loss() -> Tensor:
                with autocast():
                    return make(index, anchor) / micro_batches

            return loss

        return [closure(make, index) for index in range(micro_batches) for make in makes]

    targets = None if weights.targets == "data" or teacher is None else TargetsOnce(teacher)

    def kept(part: Rows, anchor: Anchor, name: Hashable) -> Tensor:  # (B / M,)
        target = targets.of(part, name) if targets else None
        return model.losses(model.net, part.x0, part.y, part.noise, target=target, anchor=anchor)

    def retain(index: int, anchor: Anchor) -> Tensor:
        return kept(rows.retain.part(index, micro_batches), anchor, ("retain", index)).mean()

    def exchange(index: int, anchor: Anchor) -> Tensor:
        assert rows.exchange is not None
        part = rows.exchange.part(index, micro_batches)
        return weights.exchange * kept(part, anchor, ("exchange", index)).mean()

    def both(index: int, anchor: Anchor) -> Tensor:
        assert rows.exchange is not None
        r, x = rows.retain.part(index, micro_batches), rows.exchange.part(index, micro_batches)
        losses = kept(r.joined(x), anchor, ("both", index))  # (2B / M,) of one forward
        return losses[: len(r)].mean() + weights.exchange * losses[len(r) :].mean()

    def forget(index: int, anchor: Anchor) -> Tensor:
        part = rows.forget.part(index, micro_batches)
        if not weights.contrast:
            return model.losses(model.net, part.x0, part.y, part.noise, anchor=anchor).mean()
        pair = part.joined(replace(part, y=torch.full_like(part.y, model.null_label)))
        losses = model.losses(model.net, pair.x0, pair.y, pair.noise, anchor=anchor)  # (2B / M,)
        return losses[: len(part)].mean() - losses[len(part) :].mean()

    def of_method(loss: Callable[[Rows], Tensor]) -> Callable[[int, Anchor], Tensor]:
        return lambda index, anchor: loss(rows.forget.part(index, micro_batches))

    if rows.exchange is None:
        keep = each(retain)
    else:
        keep = each(both) if joint else each(retain, exchange)
    added = [hat] if hat else []
    terms: dict[str, Term] = {
        "retain": each(retain) + added,
        "keep": keep + added,
        "forget": each(forget) + added,
    }
    terms |= {name: each(of_method(loss)) for name, loss in (own or {}).items()}
    return terms | {name: [penalty] for name, penalty in (penalties or {}).items()}
