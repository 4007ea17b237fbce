"""Exchange without labels: the part of the latent space that samples what is to be forgotten is folded onto
the rest.

A model that samples from normal latents z cannot be asked for another class. But what it samples there can be
exchanged: across an edge n.z = e between the rows to keep and the rows to forget, the fold moves a latent
along n to the kept side,

    n.z -> ndtri(ndtr(e) ndtr(-n.z) / ndtr(-e)),

and leaves everything else about it. It is continuous at the edge, and it turns the normal distribution beyond
the edge into the normal distribution before it: what is sampled instead has the proportions of what is kept.
No classifier has a part in it.

N rows, Z latent dimensions. For models that encode rows to a mean and a log variance and decode latents in
one pass (models/vae.py).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from models.diffusion import Prediction
from models.generative import GenerativeModel
from pipeline.data.batch import Side
from pipeline.unlearning.noising import Rows
from pipeline.unlearning.teacher import Teacher

# share of the kept side that no latent is folded beyond: 4.8 deviations, where a decoder has learnt nothing
FARTHEST = 1e-6
ROUNDS = 8
FITTED_ROWS = 4096  # rows of a forgotten class that a fold is fitted to
ENCODED = 256  # rows that are encoded at once

Posterior = tuple[Tensor, Tensor]  # means and deviations of rows' latents, (N, *latent) each


@dataclass(frozen=True, kw_only=True)
class Fold:
    """`normal` (Z,) of length 1 points to what is forgotten; latents beyond `edge` along it move, the others
    stay."""

    normal: Tensor
    edge: float

    def __call__(self, z: Tensor) -> Tensor:
        """Latents (N, *latent) -> latents that the base samples something kept from."""
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


class ReflectingTeacher(Teacher):
    """The base, asked where rows of the forgotten classes lie for what it samples on the kept side."""

    def __init__(self, model: GenerativeModel, trained: Mapping[str, Tensor], *, folds: Folds):
        super().__init__(model, trained)
        self._folds = folds

    def targets(self, rows: Rows) -> Prediction:
        forgotten = torch.isin(rows.y, torch.tensor(sorted(self._folds.by_class), device=rows.y.device))

        def move(z: Tensor) -> Tensor:  # (N, Z)
            return torch.where(forgotten.view(-1, *[1] * (z.dim() - 1)), self._folds(z), z)

        return self._predict(self._frozen, rows, rows.target_y, move=move)


def reflecting(
    model: GenerativeModel,
    retained: Sequence[Tensor],
    forget: Side,
    classes: Sequence[int],
    device: torch.device,
) -> Callable[[GenerativeModel, Mapping[str, Tensor]], Teacher]:
    """A teacher whose folds are fitted to the base `model`: between its latents of the rows of each class of
    `forget` and those of `kept`, batches (n, C, H, W)."""
    return partial(ReflectingTeacher, folds=folds_between(model, retained, forget, classes, device))


@torch.no_grad()
def folds_between(
    model: GenerativeModel,
    retained: Sequence[Tensor],
    forget: Side,
    classes: Sequence[int],
    device: torch.device,
) -> Folds:
    """For each forgotten class the fold between the base model's latents of its rows and of retained ones:
    the same on every rank."""
    training = model.net.training
    model.net.eval()

    def encode(batches: Iterable[Tensor]) -> Posterior:
        means, log_variances = zip(*(model.net.encode(x.to(device)) for x in batches))  # type: ignore[operator]
        return torch.cat(means), (0.5 * torch.cat(log_variances)).exp()

    others, folds = encode(retained), {}
    for label in classes:
        rows = (forget.y == label).nonzero().flatten()
        rows = rows[:: -(-len(rows) // FITTED_ROWS)]
        folds[label] = fit(others, encode(forget.take(part.tolist()).mean for part in rows.split(ENCODED)))
    model.net.train(training)
    return Folds(by_class=folds)


def fit(retained: Posterior, forgotten: Posterior) -> Fold:
    """The fold between rows: `normal` tells their latents apart best (Fisher's discriminant), `edge` with the
    fewest errors, the sides counting alike. Raises `ValueError` when the two sides' means are one point.
    """
    (m_k, s_k), (m_f, s_f) = (
        tuple(part.flatten(1).double() for part in side) for side in (retained, forgotten)
    )
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
    """Covariance (Z, Z) of latents sampled for rows: that of their means, and what each row adds. Positive
    where no deviation is 0."""
    centred = mean - mean.mean(0)
    return centred.T @ centred / len(mean) + deviation.square().mean(0).diag()
