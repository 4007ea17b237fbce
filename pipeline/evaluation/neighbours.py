"""Which classes are nearest to a forgotten one: by the model's own label table, or by what the judge mixes
up."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from models.generative import GenerativeModel
from models.judge import Judge
from pipeline.data.batch import Batch

ROWS = 2000  # of each forgotten class that the judge looks at


def nearest_classes(
    model: GenerativeModel, forgotten: Sequence[int], among: Sequence[int], k: int
) -> list[int]:
    """For each forgotten class the `k` of `among` with the closest label embedding (cosine), together,
    sorted; none without labels."""
    labels = model.label_table()
    if labels is None:
        return []
    table = labels.detach()
    # (forgotten, among)
    near = F.cosine_similarity(table[list(forgotten)].unsqueeze(1), table[list(among)].unsqueeze(0), dim=2)
    picked = near.topk(min(k, len(among)), dim=1).indices.unique().tolist()
    return sorted(among[index] for index in picked)


@torch.no_grad()
def confused_classes(judge: Judge, rows: Batch, among: Sequence[int], k: int) -> list[int]:
    """For each class of `rows` (pixels) the `k` of `among` that the judge gives most of its mean softmax,
    together, sorted."""
    picked: set[int] = set()
    for label in rows.y.unique().tolist():
        own = rows.take((rows.y == label).nonzero().flatten().tolist()[:ROWS])
        share = torch.cat([judge.logits(part).softmax(1) for part in own.mean.split(256)]).mean(0)
        picked.update(among[index] for index in share[list(among)].topk(min(k, len(among))).indices.tolist())
    return sorted(picked)
