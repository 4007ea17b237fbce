"""Exchange without labels: the part of the latent space that draws what is to be forgotten is folded onto the
rest.

A model that draws from normal latents z cannot be asked for another class. But what it draws there can be
exchanged: across an edge n.z = e between the rows to keep and the rows to forget, the fold moves a latent
along n to the kept side,

    n.z -> ndtri(ndtr(e) ndtr(-n.z) / ndtr(-e)),

and leaves everything else about it. It is continuous at the edge, and it turns the normal distribution beyond
the edge into the normal distribution before it: what is drawn instead has the proportions of what is kept. No
classifier has a part in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# share of the kept side that no latent is folded beyond: 4.8 deviations, where a decoder has learnt nothing
FARTHEST = 1e-6
ROUNDS = 8

Posterior = tuple[Tensor, Tensor]  # means and deviations of rows' latents, (N, *latent) each


@dataclass(frozen=True, kw_only=True)
class Fold:
    """`normal` (Z,) of length 1 points to what is forgotten; latents beyond `edge` along it move, the others
    stay."""

    normal: Tensor
    edge: float

    def __call__(self, z: Tensor) -> Tensor:
        """Latents (N, *latent) -> latents that the base draws something kept from."""
        flat = z.flatten(1).double()
        normal = self.normal.to(flat)
        along = flat @ normal
        edge = torch.full_like(along, self.edge)
        share = torch.special.ndtr(edge) * torch.special.ndtr(-along) / torch.special.ndtr(-edge)
        moved = torch.special.ndtri(share.clamp(FARTHEST, 1 - FARTHEST))
        shift = torch.where(along > edge, moved - along, torch.zeros_like(along))
        return (flat + shift[:, None] * normal).view_as(z).to(z.dtype)


@dataclass(frozen=True, kw_only=True)
class Folds:
    """One fold for each forgotten class. A latent that lands beyond the edge of another is folded again:
    fewer each time."""

    by_class: Mapping[int, Fold]

    def __call__(self, z: Tensor) -> Tensor:
        for _ in range(ROUNDS if len(self.by_class) > 1 else 1):
            for fold in self.by_class.values():
                z = fold(z)
        return z


def fit(kept: Posterior, forgotten: Posterior) -> Fold:
    """The fold between rows: `normal` tells their latents apart best (Fisher's discriminant), `edge` with the
    fewest errors, the sides counting alike. Raises `ValueError` when the two sides' means are one point.
    """
    (m_k, s_k), (m_f, s_f) = (tuple(part.flatten(1).double() for part in side) for side in (kept, forgotten))
    apart = m_f.mean(0) - m_k.mean(0)
    if not apart.norm() > 0:
        raise ValueError(
            "the rows to keep and those to forget lie in one place of the latent space, expected two"
        )
    spread = (_spread(m_k, s_k) + _spread(m_f, s_f)) / 2
    normal = torch.linalg.solve(spread, apart)
    normal = normal / normal.norm()
    sides = torch.cat([m_k @ normal, m_f @ normal])
    errors = torch.cat([torch.full((len(m_k),), -1 / len(m_k)), torch.full((len(m_f),), 1 / len(m_f))]).to(
        sides
    )
    order = sides.argsort()
    return Fold(normal=normal, edge=float(sides[order][errors[order].cumsum(0).argmin()]))


def _spread(mean: Tensor, deviation: Tensor) -> Tensor:
    """Covariance (Z, Z) of latents drawn for rows: that of their means, and what each row adds. Positive
    where no deviation is 0."""
    centred = mean - mean.mean(0)
    return centred.T @ centred / len(mean) + deviation.square().mean(0).diag()
