"""Did the model memorise the samples it is asked to forget, and does it still: a loss attack against
never-seen rows.

On a model that did not memorise them (AUC about 0.5 before) there is nothing to forget and nothing to
measure.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from models.generative import GenerativeModel
from pipeline.data.batch import Batch
from pipeline.evaluation.confidence import Z
from pipeline.evaluation.partials import Ranks, blocks
from pipeline.evaluation.sampling import LANES
from pipeline.unlearning.noising import draw_rows


@dataclass(frozen=True, kw_only=True)
class Membership:
    """`auc` = P(loss of a never-seen row > loss of a forgotten sample), with its 95 % interval (Hanley &
    McNeil 1982); goal 0.5."""

    auc: float
    low: float
    high: float
    n: int  # forgotten samples
    heldout_n: int
    tpr_at_1_fpr: float
    loss_forget: float
    loss_heldout: float

    @property
    def value(self) -> float:
        return self.auc

    @property
    def memorised(self) -> bool:
        """Whether the attack does better than chance beyond its own uncertainty."""
        return self.low > 0.5

    def to_dict(self) -> dict[str, float]:
        return asdict(self) | {"memorised": self.memorised}


def membership(member: Sequence[float], heldout: Sequence[float]) -> Membership:
    """From per-sample losses. Raises `ValueError` when either side is empty."""
    m, h = len(member), len(heldout)
    if not m or not h:
        raise ValueError(f"membership: got {m} forgotten and {h} never-seen rows, expected some of both")
    a, b = torch.tensor(member, dtype=torch.float64), torch.tensor(heldout, dtype=torch.float64)
    # (m, h)
    ahead = (b.unsqueeze(0) > a.unsqueeze(1)).double() + 0.5 * (b.unsqueeze(0) == a.unsqueeze(1)).double()
    auc = ahead.mean().item()
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    spread = Z * math.sqrt(
        max(0.0, auc * (1 - auc) + (m - 1) * (q1 - auc * auc) + (h - 1) * (q2 - auc * auc)) / (m * h)
    )
    threshold = b.sort().values[int(0.01 * h)]  # no more than 1 % of the never-seen rows lie below it
    return Membership(
        auc=auc,
        low=max(0.0, auc - spread),
        high=min(1.0, auc + spread),
        n=m,
        heldout_n=h,
        tpr_at_1_fpr=(a < threshold).double().mean().item(),
        loss_forget=a.mean().item(),
        loss_heldout=b.mean().item(),
    )


@torch.no_grad()
def sample_losses(
    model: GenerativeModel, rows: Batch, *, draws: int, seed: int, batch: int, collectives: Ranks
) -> list[float]:
    """The model's own loss of every row, averaged over `draws` timesteps and noises that depend on the sample
    alone.

    Sharded: each rank takes every world-th block of rows, all get the whole answer.
    """
    device = next(model.net.parameters()).device
    losses = torch.zeros(len(rows), dtype=torch.float64, device=device)
    size = min(batch, max(1, -(-len(rows) // LANES)))
    for index in blocks(len(rows), size, collectives.rank, collectives.world):
        part = rows.take(index)
        for k in range(draws):
            drawn = draw_rows(model, part, seed=seed, step=k, term="membership", device=device)
            losses[index] += model.losses(model.net, drawn.x0, drawn.y, drawn.noise).double() / draws
    return [float(value) for value in collectives.sum(losses).tolist()]
