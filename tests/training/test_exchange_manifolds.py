"""What a forgotten label's images are held against: real rows of its exchange classes in the judge's
features."""

import pytest
import torch
from tiny import tiny_batch, tiny_judge

from pipeline.evaluation.rows import manifolds
from pipeline.training import worker_inputs


def test_each_forgotten_class_has_the_rows_of_its_exchange_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, rows = tiny_judge(), tiny_batch([0, 2, 3], each=9)
    cpu = torch.device("cpu")

    def made(exchange: dict[int, tuple[int, ...]]) -> dict[int, torch.Tensor]:
        own = worker_inputs.exchange_rows_by_class(rows, exchange)
        return {c: one.rows for c, one in manifolds(judge, own, 3, lambda x: x / 2, cpu).items()}

    with torch.no_grad():
        features = judge.features(rows.mean / 2).double()
    found = made({1: (2,), 4: (0, 3), 5: (7,)})
    assert sorted(found) == [1, 4], "a class without real rows has none"
    assert torch.allclose(found[1], features[rows.y == 2]) and torch.allclose(
        found[4], features[(rows.y == 0) | (rows.y == 3)]
    )
    monkeypatch.setattr(worker_inputs, "ALIKE_ROWS", 5)
    assert torch.allclose(made({1: (2,)})[1], features[rows.y == 2][::2]), "of many rows some, from all over"
    monkeypatch.setattr(worker_inputs, "ALIKE_ROWS", 3)
    assert made({1: (2,)}) == {}, "too few for a third neighbour"
