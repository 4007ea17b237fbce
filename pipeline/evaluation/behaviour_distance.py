"""How far models behave from ones that never saw what was forgotten, row by row: the divergence of the
distributions of their losses, after KLOM (Georgiev et al. 2024, arXiv 2410.23232).

M models, R references, N rows. KLOM bins a classifier's margins; here a row's losses are taken as normal,
with one deviation for all rows of a group, which a handful of models suffices for.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def behaviour_distance(models: Tensor, references: Tensor) -> float | None:
    """The mean over rows of KL(N(models) || N(references)), in nats, from losses (M, N) and (R, N).

    One model alone is taken to have the references' deviation. None with fewer than two references, or where
    they do not differ.
    """
    if len(references) < 2 or not models.numel():
        return None
    theirs = _deviation(references)
    ours = _deviation(models) if len(models) > 1 else theirs
    if not theirs or not ours:
        return None
    apart = (models.mean(0) - references.mean(0)).square().mean().item()
    return math.log(theirs / ours) + (ours**2 + apart) / (2 * theirs**2) - 0.5


def floor(references: Tensor) -> float | None:
    """What a further reference would have: the mean distance of each one from the others."""
    if len(references) < 3:
        return None
    others = [
        behaviour_distance(references[k : k + 1], torch.cat([references[:k], references[k + 1 :]]))
        for k in range(len(references))
    ]
    values = [value for value in others if value is not None]
    return sum(values) / len(values) if values else None


def as_losses(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _deviation(losses: Tensor) -> float:
    """Of a row's losses over models, pooled over rows."""
    return math.sqrt(losses.var(0).mean().item())
