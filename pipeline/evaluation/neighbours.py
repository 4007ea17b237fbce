"""Which classes are nearest to a forgotten one, as the model itself sees them."""

from collections.abc import Sequence

import torch.nn.functional as F

from models.generative import GenerativeModel


def nearest_classes(model: GenerativeModel, forgotten: Sequence[int], among: Sequence[int], k: int) -> list[int]:
    """For each forgotten class the `k` of `among` with the closest label embedding (cosine), together, sorted; none without labels."""
    labels = model.label_table()
    if labels is None:
        return []
    table = labels.detach()
    near = F.cosine_similarity(table[list(forgotten)].unsqueeze(1), table[list(among)].unsqueeze(0), dim=2)  # (forgotten, among)
    picked = near.topk(min(k, len(among)), dim=1).indices.unique().tolist()
    return sorted(among[index] for index in picked)
