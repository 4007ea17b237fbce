"""The model's own loss by timestep, on forgotten and retained rows, trained on and held out: where in the
process something is left."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.diffusion import Noise
from models.generative import GenerativeModel
from pipeline.data.batch import Batch
from pipeline.evaluation.confidence import Z
from pipeline.evaluation.partials import Sums, blocks, tally
from pipeline.unlearning.noising import draw_rows


def edges(timesteps: int, bins: int) -> list[tuple[int, int]]:
    """[first, last) timestep of each bin; as many bins as there are timesteps at most."""
    bins = min(bins, timesteps)
    cuts = [round(index * timesteps / bins) for index in range(bins + 1)]
    return list(itertools.pairwise(cuts))


@torch.no_grad()
def timestep_losses(
    model: GenerativeModel,
    rows: Batch,
    *,
    timesteps: int,
    bins: int,
    seed: int,
    block: int,
    rank: int,
    world: int,
) -> Sums:
    """Per bin: count, sum and sum of squares of the rows' losses, one draw of timestep and noise a row and
    bin; keys bin/<index>.

    The draw depends on (seed, bin, sample id) alone, so that two models are measured on the same noise.
    """
    sums: Sums = {}
    device = next(model.net.parameters()).device
    for positions in blocks(len(rows), block, rank, world):
        part = rows.take(positions)
        for index, (first, last) in enumerate(edges(timesteps, bins)):
            drawn = draw_rows(model, part, seed=seed, step=index, term="timestep", device=device)
            t = first + drawn.noise.t * (last - first) // timesteps
            losses = (
                model.losses(model.net, drawn.x0, drawn.y, Noise(t=t, eps=drawn.noise.eps)).double().cpu()
            )
            count = torch.tensor(float(len(losses)), dtype=torch.float64)
            tally(sums, f"bin/{index}", torch.stack([count, losses.sum(), losses.square().sum()]))
    return sums


def loss_by_timestep(groups: Mapping[str, Mapping[str, Tensor]], timesteps: int, bins: int) -> dict[str, Any]:
    """Mean loss of each group of rows in each bin, with the 95 % interval of the mean."""
    cuts = edges(timesteps, bins)
    found: dict[str, Any] = {"bins": [list(cut) for cut in cuts]}
    for name, sums in groups.items():
        lines = [_mean(sums[f"bin/{index}"]) for index in range(len(cuts))]
        found[name] = {
            "n": int(sums["bin/0"][0].item()),
            "overall": sum(mean for mean, _ in lines) / len(lines),
            "mean": [mean for mean, _ in lines],
            "low": [mean - half for mean, half in lines],
            "high": [mean + half for mean, half in lines],
        }
    return found


def _mean(sums: Tensor) -> tuple[float, float]:
    count, total, squares = (float(value) for value in sums)
    mean = total / count
    variance = max(0.0, (squares - count * mean * mean) / (count - 1)) if count > 1 else 0.0
    return mean, Z * math.sqrt(variance / count)
