"""The model's own loss by timestep, on forgotten and retained rows, trained on and held out: where in the
process something is left."""

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.diffusion import Noise
from pipeline.data.batch import Batch
from pipeline.evaluation.confidence import mean_and_half
from pipeline.evaluation.context import EvalContext, EvalSpec, Split
from pipeline.evaluation.partials import Partials, Ranks, add_into, below, blocks, moments_of_values
from pipeline.evaluation.rows import forgotten_rows, pick
from pipeline.unlearning.noising import noised_rows


def edges(timesteps: int, bins: int) -> list[tuple[int, int]]:
    """[first, last) timestep of each bin; as many bins as there are timesteps at most."""
    bins = min(bins, timesteps)
    cuts = [round(index * timesteps / bins) for index in range(bins + 1)]
    return list(itertools.pairwise(cuts))


def row_groups(context: EvalContext) -> dict[str, Batch]:
    """At most `loss_rows` rows of each kind, by name; kinds that the lake has no rows of are left out."""
    spec = context.spec
    splits: tuple[Split, ...] = ("train", "heldout")
    rows = {
        f"{kind} {split}": read
        for split in splits
        for kind, read in (
            ("forget", forgotten_rows(context, split)),
            ("retain", context.rows(list(spec.retained), split)),
        )
    }
    return {
        name.replace(" ", "_"): pick(some, spec.settings.loss_rows, spec.seed, f"losses of {name}")
        for name, some in rows.items()
        if len(some)
    }


@torch.no_grad()
def timestep_losses(context: EvalContext, ranks: Ranks) -> Partials:
    """loss/<side>/<group>/<bin> (3,): count, sum and sum of squares of the rows' losses, one timestep and
    noise a row and bin.

    The noise depends on (seed, bin, sample id) alone, so that two models are measured on the same.
    """
    spec, s, partials = context.spec, context.spec.settings, Partials()
    for group, rows in row_groups(context).items():
        for side, model in context.sides.items():
            model.net.eval()
            device = next(model.net.parameters()).device
            for positions in blocks(len(rows), s.block, ranks.rank, ranks.world_size):
                part = rows.take(positions)
                for index, (first, last) in enumerate(edges(spec.timesteps, s.timestep_bins)):
                    noised = noised_rows(
                        model, part, seed=spec.seed, step=index, term="timestep", device=device
                    )
                    noise = Noise(t=model.time.within(noised.noise.t, first, last), eps=noised.noise.eps)
                    losses = model.losses(model.net, noised.x0, noised.y, noise)
                    add_into(partials, f"loss/{side}/{group}/{index}", moments_of_values(losses))
    return partials


def loss_by_timestep(spec: EvalSpec, partials: Mapping[str, Tensor], side: str) -> dict[str, Any]:
    """Mean loss of each group of rows in each bin, with the 95 % interval of the mean."""
    cuts = edges(spec.timesteps, spec.settings.timestep_bins)
    sums = below(partials, f"loss/{side}")
    result: dict[str, Any] = {"bins": [list(cut) for cut in cuts]}
    for group in dict.fromkeys(name.split("/")[0] for name in sums):
        lines = [mean_and_half(sums[f"{group}/{index}"]) for index in range(len(cuts))]
        result[group] = {
            "n": int(sums[f"{group}/0"][0].item()),
            "overall": sum(mean for mean, _ in lines) / len(lines),
            "mean": [mean for mean, _ in lines],
            "low": [mean - (half or 0.0) for mean, half in lines],
            "high": [mean + (half or 0.0) for mean, half in lines],
        }
    return result


def figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """The mean over all timesteps of each group of rows; the bins are a chart."""
    return {
        group.replace("_", " "): {"value": line["overall"], "n": line["n"]}
        for group, line in result.items()
        if group != "bins"
    }
