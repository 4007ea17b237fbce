"""Did the model memorise the samples it is asked to forget, and does it still: a loss attack against
never-seen rows.

On a model that did not memorise them (AUC about 0.5 before) there is nothing to forget and nothing to
measure.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.generative import GenerativeModel
from pipeline.data.batch import Batch
from pipeline.evaluation.confidence import Z
from pipeline.evaluation.context import EvalContext, EvalSpec, Split
from pipeline.evaluation.partials import Partials, Ranks, blocks
from pipeline.evaluation.rows import forgotten_rows, pick
from pipeline.evaluation.sampling import LANES
from pipeline.seeding import seed_of
from pipeline.unlearning.noising import noised_rows


def membership_losses(context: EvalContext, ranks: Ranks) -> Partials:
    """membership/<side>/members (N,) and membership/<side>/heldout (M,): losses of the forgotten rows and of
    never-seen rows of their classes."""
    spec, s = context.spec, context.spec.settings
    splits: tuple[tuple[str, Split], ...] = (("members", "train"), ("heldout", "heldout"))
    rows = {
        name: pick(forgotten_rows(context, split), s.membership_rows, spec.seed, "membership")
        for name, split in splits
    }
    return {
        f"membership/{side}/{name}": row_losses(
            model,
            some,
            noises=s.membership_noises,
            seed=seed_of(spec.seed, spec.purpose),
            batch=s.block,
            ranks=ranks,
        )
        for side, model in context.sides.items()
        for name, some in rows.items()
    }


@torch.no_grad()
def row_losses(
    model: GenerativeModel, rows: Batch, *, noises: int, seed: int, batch: int, ranks: Ranks
) -> Tensor:
    """The model's own loss of this rank's blocks of rows (every world_size-th), in their places (N,) float64,
    averaged over `noises` timesteps and noises that depend on the sample alone."""
    device = next(model.net.parameters()).device
    losses = torch.zeros(len(rows), dtype=torch.float64, device=device)
    model.net.eval()
    size = min(batch, max(1, -(-len(rows) // LANES)))
    for index in blocks(len(rows), size, ranks.rank, ranks.world_size):
        part = rows.take(index)
        for k in range(noises):
            noised = noised_rows(model, part, seed=seed, step=k, term="membership", device=device)
            losses[index] += model.losses(model.net, noised.x0, noised.y, noised.noise).double() / noises
    return losses.cpu()


def membership(spec: EvalSpec, partials: Mapping[str, Tensor], side: str) -> dict[str, Any] | None:
    """None where there are no forgotten or no never-seen rows."""
    members, heldout = (partials[f"membership/{side}/{name}"].tolist() for name in ("members", "heldout"))
    return attack(members, heldout) if members and heldout else None


def attack(members: Sequence[float], heldout: Sequence[float]) -> dict[str, Any]:
    """From per-sample losses: `auc` = P(loss of a never-seen row > loss of a forgotten sample), goal 0.5,
    with its 95 % interval (Newcombe 2006, method 5), the share of forgotten samples found at 1 % false
    alarms, and `memorised`: whether the attack does better than chance beyond its own uncertainty.

    Raises `ValueError` when either side is empty or holds what is no number.
    """
    m, h = len(members), len(heldout)
    if not m or not h:
        raise ValueError(f"membership: got {m} forgotten and {h} never-seen rows, expected some of both")
    a, b = torch.tensor(members, dtype=torch.float64), torch.tensor(heldout, dtype=torch.float64)
    if bad := int((~a.isfinite()).sum() + (~b.isfinite()).sum()):
        raise ValueError(f"membership: {bad} of {m + h} losses are NaN or infinite: the weights are damaged")
    # (m, h)
    ahead = (b.unsqueeze(0) > a.unsqueeze(1)).double() + 0.5 * (b.unsqueeze(0) == a.unsqueeze(1)).double()
    auc = ahead.mean().item()
    threshold = b.sort().values[int(0.01 * h)]  # no more than 1 % of the never-seen rows lie below it
    low, high = auc_interval(auc, m, h)
    return {
        "auc": auc,
        "low": low,
        "high": high,
        "n": m,
        "heldout_n": h,
        "tpr_at_1_fpr": (a < threshold).double().mean().item(),
        "loss_forget": a.mean().item(),
        "loss_heldout": b.mean().item(),
        "memorised": low > 0.5,
    }


def auc_interval(auc: float, m: int, h: int) -> tuple[float, float]:
    """The 95 % interval of an area under the curve from m and h rows: the areas t whose own variance, after
    Hanley & McNeil (1982), puts `auc` at most 1.96 deviations away (Newcombe 2006, method 5). Unlike the
    deviation around `auc` itself it has a width also where no pair is out of order."""

    def beyond(t: float) -> float:
        spread = 1 + ((m + h) / 2 - 1) * ((1 - t) / (2 - t) + t / (1 + t))
        return abs(auc - t) - Z * math.sqrt(t * (1 - t) * spread / (m * h))

    def edge(outside: float) -> float:
        inside = auc
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if beyond(middle) > 0 else (middle, outside)
        return inside

    return (edge(0.0) if auc > 0 else 0.0), (edge(1.0) if auc < 1 else 1.0)


def figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a report shows."""
    words = {
        "tpr_at_1_fpr": "found at 1 % false alarms",
        "loss_forget": "loss on forgotten images",
        "loss_heldout": "loss on never-seen images",
    }
    auc = {"value": result["auc"], **{key: result[key] for key in ("low", "high", "n") if key in result}}
    return {
        "area under the curve, chance is 0.5": auc,
        **{text: result[key] for key, text in words.items() if key in result},
    }
