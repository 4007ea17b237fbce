"""The frozen base model: what the student is held to where targets are a teacher's and not the data's.

N rows; a prediction is (N, C, H, W).
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from models.diffusion import Prediction
from models.generative import GenerativeModel
from models.second_order import wanted as second_order_wanted
from pipeline.unlearning.label_init import start_at_exchange
from pipeline.unlearning.noising import Rows
from pipeline.unlearning.parameters import label_parameter


class Teacher:
    """The student's untrained weights (shared) and a copy of the trained ones as they were."""

    def __init__(self, model: GenerativeModel, trained: Mapping[str, Tensor]):
        self._model = model
        self._frozen = {name: tensor.detach().clone() for name, tensor in trained.items()}
        self._buffers = {name: buffer.detach().clone() for name, buffer in model.net.named_buffers()}
        self._labels = label_parameter(model, trained)
        device = next(iter(self._frozen.values())).device
        self._aimed, self._pushed = self._frozen, torch.zeros(0, dtype=torch.long, device=device)

    def aim(self, exchange: Mapping[int, Sequence[int]], push: Mapping[int, float]) -> None:
        """Have L_x ask each class c of `push` for what the base samples at e + push[c] (e - c), its exchange
        class being e: see label_init.py.

        Zero is where L_x aims without this. Raises `ValueError` for a class with several exchange classes or
        labels that are not trained.
        """
        far = {c: distance for c, distance in push.items() if distance}
        if not far:
            return
        if self._labels is None:
            raise ValueError(
                "method.label_extrapolation: moves rows of the label table, which is not among the trained"
                " weights"
            )
        table = self._frozen[self._labels].clone()
        for c, distance in far.items():
            start_at_exchange(table, {c: exchange[c]}, distance)
        self._aimed = self._frozen | {self._labels: table}
        self._pushed = torch.tensor(sorted(far), device=table.device)

    def predict(self, rows: Rows, y: Tensor) -> Prediction:
        """What the base predicts for `rows` under the labels `y` (N,)."""
        return self._predict(self._frozen, rows, y)

    @property
    def pushed(self) -> list[int]:
        """The classes whose label is aimed beyond their exchange class."""
        return self._pushed.tolist()

    def predict_aimed(self, rows: Rows, y: Tensor) -> Prediction:
        """What the base predicts for `rows` under the labels `y` (N,), those of `pushed` being where they are
        aimed."""
        return self._predict(self._aimed, rows, y)

    def targets(self, rows: Rows) -> Prediction:
        """What L_r and L_x are measured against."""
        pushed = torch.isin(rows.y, self._pushed.to(rows.y.device))
        return self._predict(self._aimed, rows, torch.where(pushed, rows.y, rows.target_y))

    @torch.no_grad()
    def _predict(self, weights: Mapping[str, Tensor], rows: Rows, y: Tensor, **options: Any) -> Prediction:
        """With `weights` in place of the student's; `options` go to the network's forward. What a pass counts
        (batch norm) is the student's own: it gets copies of the base's buffers."""

        def net(*inputs: Tensor) -> Any:
            buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
            return functional_call(self._model.net, {**buffers, **weights}, inputs, options)

        return self._model.predict(net, rows.seen_by_teacher, y, rows.noise)


class TargetsOnce:
    """A step's targets: differences of first-order gradients ask for the same rows again. In second-order
    passes the operations are others, and so is the rounding: there the teacher answers each time."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._known: dict[Hashable, Prediction] = {}

    def of(self, rows: Rows, name: Hashable) -> Prediction:
        """What `teacher.targets` gives for `rows`, which are always the same under this `name`."""
        if second_order_wanted():
            return self._teacher.targets(rows)
        if name not in self._known:
            self._known[name] = self._teacher.targets(rows)
        return self._known[name]
