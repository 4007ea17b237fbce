"""The losses of a step, L_r, L_x and L_f, as closures over micro-batches (docs/numerics.md has the
definitions)."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from models.diffusion import Anchor, Noise, Prediction
from models.generative import GenerativeModel
from pipeline.unlearning.experimental.latent_reflection import Folds
from pipeline.unlearning.gradients import Term
from pipeline.unlearning.label_init import start_at_exchange
from pipeline.unlearning.parameters import label_parameter


@dataclass(frozen=True, kw_only=True)
class Rows:
    """N rows ready for the loss: x0 (posterior already drawn for latents), the label asked for, and their
    noise."""

    x0: Tensor  # (N, C, H, W)
    y: Tensor  # (N,) label the student is asked for (the null label where it is dropped)
    target_y: Tensor  # (N,) label the teacher is asked for
    noise: Noise

    def __len__(self) -> int:
        return len(self.y)

    def part(self, index: int, parts: int) -> "Rows":
        """The index-th of `parts` equal micro-batches."""
        n = len(self) // parts
        cut = slice(index * n, (index + 1) * n)
        return Rows(
            x0=self.x0[cut],
            y=self.y[cut],
            target_y=self.target_y[cut],
            noise=Noise(t=self.noise.t[cut], eps=self.noise.eps[cut]),
        )


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """A worker's share of a step: rows of each kind."""

    retain: Rows
    forget: Rows
    exchange: Rows | None


@dataclass(frozen=True, kw_only=True)
class Weights:
    """How the terms are put together."""

    exchange: float = 1.0
    targets: str = "data"
    contrast: bool = False
    eta: float = 3.0


class Teacher:
    """The frozen base model: the student's untrained weights (shared) and a copy of the trained ones as they
    were."""

    def __init__(self, model: GenerativeModel, trained: Mapping[str, Tensor]):
        self._model = model
        self._frozen = {name: tensor.detach().clone() for name, tensor in trained.items()}
        self._labels = label_parameter(model, trained)
        self._aimed, self._pushed = self._frozen, torch.zeros(0, dtype=torch.long)
        self._folds: Folds | None = None

    def aim(self, exchange: Mapping[int, Sequence[int]], push: Mapping[int, float]) -> None:
        """Have L_x ask each class c of `push` for what the base draws at e + push[c] (e - c), its exchange
        class being e: see start.py.

        Zero is where L_x aims without this. Raises `ValueError` for a class with several exchange classes or
        labels that are not trained.
        """
        far = {c: distance for c, distance in push.items() if distance}
        if not far:
            return
        if self._labels is None:
            raise ValueError(
                "method.push: moves rows of the label table, which is not among the trained weights"
            )
        table = self._frozen[self._labels].clone()
        for c, distance in far.items():
            start_at_exchange(table, {c: exchange[c]}, distance)
        self._aimed = self._frozen | {self._labels: table}
        self._pushed = torch.tensor(sorted(far), device=table.device)

    def fold(self, folds: Folds) -> None:
        """Have L_x ask, where the rows of the forgotten classes lie, for what the base draws on the kept
        side: see fold.py."""
        self._folds = folds

    def predict(self, rows: Rows, y: Tensor) -> Prediction:
        """What the base predicts for `rows` under the labels `y` (N,)."""
        return self._predict(self._frozen, rows, y)

    def targets(self, rows: Rows) -> Prediction:
        """What L_r and L_x are measured against."""
        if self._folds is not None:
            return self._folded(rows, self._folds)
        pushed = torch.isin(rows.y, self._pushed.to(rows.y.device))
        return self._predict(self._aimed, rows, torch.where(pushed, rows.y, rows.target_y))

    def _folded(self, rows: Rows, folds: Folds) -> Prediction:
        forgotten = torch.isin(rows.y, torch.tensor(sorted(folds.by_class), device=rows.y.device))

        def move(z: Tensor) -> Tensor:
            return torch.where(forgotten.view(-1, *[1] * (z.dim() - 1)), folds(z), z)

        return self._predict(self._frozen, rows, rows.target_y, move=move)

    @torch.no_grad()
    def _predict(self, weights: Mapping[str, Tensor], rows: Rows, y: Tensor, **options: Any) -> Prediction:
        def net(*inputs: Tensor, **moved: Any) -> Any:
            return functional_call(self._model.net, dict(weights), inputs, moved)

        return self._model.predict(net, rows.x0, y, rows.noise, **options)


def build_terms(
    model: GenerativeModel,
    rows: StepRows,
    weights: Weights,
    *,
    teacher: Teacher | None,
    micro_batches: int = 1,
    joint: bool = True,
    hat: Callable[[], Tensor] | None = None,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Term]:
    """`retain` (L_r), `keep` (L_r + w L_x), `forget` (L_f) and `esd`, cut into micro-batches.

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

    def kept(part: Rows, anchor: Anchor) -> Tensor:
        target = None if weights.targets == "data" or teacher is None else teacher.targets(part)
        return model.losses(model.net, part.x0, part.y, part.noise, target=target, anchor=anchor)

    def retain(index: int, anchor: Anchor) -> Tensor:
        return kept(rows.retain.part(index, micro_batches), anchor).mean()

    def exchange(index: int, anchor: Anchor) -> Tensor:
        assert rows.exchange is not None
        return weights.exchange * kept(rows.exchange.part(index, micro_batches), anchor).mean()

    def both(index: int, anchor: Anchor) -> Tensor:
        assert rows.exchange is not None
        r, x = rows.retain.part(index, micro_batches), rows.exchange.part(index, micro_batches)
        losses = kept(_joined(r, x), anchor)  # one forward on 2B rows
        return losses[: len(r)].mean() + weights.exchange * losses[len(r) :].mean()

    def forget(index: int, anchor: Anchor) -> Tensor:
        part = rows.forget.part(index, micro_batches)
        if not weights.contrast:
            return model.losses(model.net, part.x0, part.y, part.noise, anchor=anchor).mean()
        null = Rows(
            x0=part.x0, y=torch.full_like(part.y, model.null_label), target_y=part.target_y, noise=part.noise
        )
        pair = _joined(part, null)
        own, other = model.losses(model.net, pair.x0, pair.y, pair.noise, anchor=anchor).chunk(2)
        return own.mean() - other.mean()

    def esd(index: int, anchor: Anchor) -> Tensor:
        assert teacher is not None
        part = rows.forget.part(index, micro_batches)
        null, own = (
            teacher.predict(part, torch.full_like(part.y, model.null_label)),
            teacher.predict(part, part.y),
        )
        target = Prediction((1 + weights.eta) * null.eps - weights.eta * own.eps, own.v)
        return model.losses(model.net, part.x0, part.y, part.noise, target=target).mean()

    if rows.exchange is None:
        keep = each(retain)
    else:
        keep = each(both) if joint else each(retain, exchange)
    added = [hat] if hat else []
    return {
        "retain": each(retain) + added,
        "keep": keep + added,
        "forget": each(forget) + added,
        "esd": each(esd),
    }


def _joined(first: Rows, second: Rows) -> Rows:
    return Rows(
        x0=torch.cat([first.x0, second.x0]),
        y=torch.cat([first.y, second.y]),
        target_y=torch.cat([first.target_y, second.target_y]),
        noise=Noise(
            t=torch.cat([first.noise.t, second.noise.t]), eps=torch.cat([first.noise.eps, second.noise.eps])
        ),
    )
