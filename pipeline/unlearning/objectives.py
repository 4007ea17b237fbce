"""The losses of a step, L_r, L_x and L_f, as closures over micro-batches (docs/numerics.md has the definitions)."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from models.diffusion import Noise, Prediction
from models.generative import GenerativeModel


@dataclass(frozen=True, kw_only=True)
class Rows:
    """N rows ready for the loss: x0 (posterior already drawn for latents), the label asked for, and their noise."""

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
        return Rows(x0=self.x0[cut], y=self.y[cut], target_y=self.target_y[cut], noise=Noise(t=self.noise.t[cut], eps=self.noise.eps[cut]))


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
    """The frozen base model: the student's untrained weights (shared) and a copy of the trained ones as they were."""

    def __init__(self, model: GenerativeModel, trained: Mapping[str, Tensor]):
        self._model = model
        self._frozen = {name: tensor.detach().clone() for name, tensor in trained.items()}

    @torch.no_grad()
    def predict(self, rows: Rows, y: Tensor) -> Prediction:
        def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return functional_call(self._model.net, self._frozen, (x, t, label))

        return self._model.predict(net, rows.x0, y, rows.noise)


def build_terms(
    model: GenerativeModel,
    rows: StepRows,
    weights: Weights,
    *,
    teacher: Teacher | None,
    micro_batches: int = 1,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Sequence[Callable[[], Tensor]]]:
    """`retain` (L_r), `keep` (L_r + w L_x), `forget` (L_f) and `esd`: one closure a micro-batch each."""

    def each(make: Callable[[int], Tensor]) -> Sequence[Callable[[], Tensor]]:
        def closure(index: int) -> Callable[[], Tensor]:
            def loss() -> Tensor:
                with autocast():
                    return make(index)

            return loss

        return [closure(index) for index in range(micro_batches)]

    def kept(part: Rows) -> Tensor:
        target = None if weights.targets == "data" or teacher is None else teacher.predict(part, part.target_y)
        return model.losses(model.net, part.x0, part.y, part.noise, target=target)

    def retain(index: int) -> Tensor:
        return kept(rows.retain.part(index, micro_batches)).mean()

    def keep(index: int) -> Tensor:
        if rows.exchange is None:
            return retain(index)
        r, x = rows.retain.part(index, micro_batches), rows.exchange.part(index, micro_batches)
        losses = kept(_joined(r, x))  # one forward on 2B rows
        return losses[: len(r)].mean() + weights.exchange * losses[len(r) :].mean()

    def forget(index: int) -> Tensor:
        part = rows.forget.part(index, micro_batches)
        loss = model.losses(model.net, part.x0, part.y, part.noise).mean()
        if weights.contrast:
            loss = loss - model.losses(model.net, part.x0, torch.full_like(part.y, model.null_label), part.noise).mean()
        return loss

    def esd(index: int) -> Tensor:
        assert teacher is not None
        part = rows.forget.part(index, micro_batches)
        null, own = teacher.predict(part, torch.full_like(part.y, model.null_label)), teacher.predict(part, part.y)
        target = Prediction((1 + weights.eta) * null.eps - weights.eta * own.eps, own.v)
        return model.losses(model.net, part.x0, part.y, part.noise, target=target).mean()

    return {"retain": each(retain), "keep": each(keep), "forget": each(forget), "esd": each(esd)}


def _joined(first: Rows, second: Rows) -> Rows:
    return Rows(
        x0=torch.cat([first.x0, second.x0]),
        y=torch.cat([first.y, second.y]),
        target_y=torch.cat([first.target_y, second.target_y]),
        noise=Noise(t=torch.cat([first.noise.t, second.noise.t]), eps=torch.cat([first.noise.eps, second.noise.eps])),
    )
