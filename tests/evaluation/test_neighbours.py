"""The classes nearest to a forgotten one, by embedding and by the judge's confusion."""

import torch
from torch import Tensor, nn

from models.judge import Judge
from pipeline.data.batch import Batch
from pipeline.evaluation.neighbours import confused_classes, nearest_classes
from tests.tiny import tiny_dit


class PixelJudge:
    """Its prediction is written into the first pixels of an image."""

    num_classes = 4
    feature_size = 4

    def __init__(self) -> None:
        self.net: nn.Module = nn.Identity()
        self.config: dict[str, object] = {}

    def logits(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4]

    features = logits


def images(label: int, predictions: list[list[float]]) -> Batch:
    mean = torch.zeros(len(predictions), 1, 2, 2)
    mean.view(len(predictions), 4).copy_(torch.tensor(predictions))
    names = tuple(f"{label}-{index}" for index in range(len(predictions)))
    return Batch.of(
        sample_id=names,
        occurrence=(0,) * len(predictions),
        y=torch.full((len(predictions),), label),
        mean=mean,
        std=None,
    )


def test_confusion_is_the_share_the_judge_gives_to_other_classes() -> None:
    judge: Judge = PixelJudge()  # type: ignore[assignment]
    # class 2 most, then 3, then 0; its own counts for nothing
    rows = images(1, [[0.0, 9.0, 1.0, 3.0], [0.0, 9.0, 4.0, 1.0]])
    assert confused_classes(judge, rows, [0, 2, 3], 1) == [2]
    assert confused_classes(judge, rows, [0, 2, 3], 2) == [2, 3]
    assert confused_classes(judge, rows, [0, 3], 1) == [3]
    assert confused_classes(judge, rows, [0, 2, 3], 9) == [0, 2, 3]


def test_embedding_neighbours_are_the_nearest_rows_of_the_label_table() -> None:
    model = tiny_dit(dtype=torch.float32)
    with torch.no_grad():
        table = model.label_table()
        table.zero_()
        table[:4, :3] = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
    assert nearest_classes(model, [0], [1, 2, 3], 1) == [1]
    assert nearest_classes(model, [0], [1, 2, 3], 2) == [1, 3]
