"""SISS (Alberti et al. 2025, arXiv 2503.01034): the score of what is kept less that of what is forgotten,
both at one noised point from the mixture of the two."""

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from models.diffusion import Noise
from models.families.transformer import Transformer
from pipeline.data.batch import Batch
from pipeline.seeding import generator
from pipeline.unlearning.gradients import Gradients
from pipeline.unlearning.methods.preparation import Memory, Preparation, Tools
from pipeline.unlearning.methods.settings import MethodSettings
from pipeline.unlearning.noising import Rows
from pipeline.unlearning.penalty import TINY, dot


class SissSettings(MethodSettings):
    mixture: float = Field(
        0.5, gt=0, lt=1, description="lambda: share of the points that are noised forgotten rows"
    )
    forget_share: float = Field(
        0.1, ge=0, description="length of the forgetting's gradient against that of the kept rows'"
    )


def kept_siblings(preparation: Preparation) -> Memory:
    """The rows x that a forgotten row a is paired with, by the label of a: of its exchange classes where the
    label is forgotten, else others of its own class."""
    labels = sorted(set(preparation.forget.y.tolist()))
    return Memory(
        siblings={
            label: preparation.rows_of(list(preparation.exchange.get(label, (label,)))) for label in labels
        }
    )


def mixture_points(rows: Rows, batch: Batch, preparation: Preparation, memory: Memory, step: int) -> Rows:
    """`rows` a with a kept row x of `memory` in target_x0 each, and the noise of a that leads to
    m_t ~ (1 - lambda) q(m_t | x) + lambda q(m_t | a)."""
    model = preparation.model
    assert isinstance(model, Transformer)
    x, of_x = rows.x0.clone(), torch.zeros(len(rows), dtype=torch.bool)
    for place, (label, name, occurrence) in enumerate(
        zip(batch.y.tolist(), batch.sample_id, batch.occurrence, strict=True)
    ):
        kept, g = memory.siblings[label], generator(preparation.seed, step, "siss", name, occurrence)
        index = int(torch.randint(len(kept), (), generator=g))
        of_x[place] = torch.rand((), generator=g) >= preparation.settings.mixture
        row = kept.mean[index]
        if kept.std is not None:
            row = row + kept.std[index] * torch.randn(row.shape, generator=g)
        x[place] = row.to(x)
    t, eps = rows.noise.t, rows.noise.eps
    points = torch.where(of_x.to(x.device).view(-1, 1, 1, 1), x, rows.x0)
    path = model.diffusion.path
    m = path.noised(points, t, eps)
    return replace(rows, target_x0=x, noise=Noise(t=t, eps=path.noise_in(m, t, rows.x0)))


def _errors(tools: Tools, part: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """|eps_x - F|^2 and |eps_a - F|^2 of each row (on a flow of velocities), and log q(m | x) - log q(m | a),
    (N,) each."""
    model, t = tools.model, part.noise.t
    assert isinstance(model, Transformer) and part.target_x0 is not None
    student = model.predict(model.net, part.x0, part.y, part.noise).value.to(part.x0.dtype)
    path, kind, eps_a = model.diffusion.path, model.diffusion.prediction, part.noise.eps
    eps_x = path.noise_in(path.noised(part.x0, t, eps_a), t, part.target_x0)
    nearer = (eps_a.square().flatten(1).sum(1) - eps_x.square().flatten(1).sum(1)) / 2
    return (
        (student - kind.target(path, part.target_x0, t, eps_x)).square().flatten(1).mean(1),
        (student - kind.target(path, part.x0, t, eps_a)).square().flatten(1).mean(1),
        nearer,
    )


def kept_loss(tools: Tools, part: Rows) -> Tensor:
    """The mean of q(m | x) / ((1 - lambda) q(m | x) + lambda q(m | a)) |eps_x - F|^2, ()."""
    errors, _, nearer = _errors(tools, part)
    share = tools.settings.mixture
    return (errors / (1 - share + share * (-nearer).exp())).mean()


def forgotten_loss(tools: Tools, part: Rows) -> Tensor:
    """The mean of q(m | a) / ((1 - lambda) q(m | x) + lambda q(m | a)) |eps_a - F|^2, ()."""
    _, errors, nearer = _errors(tools, part)
    share = tools.settings.mixture
    return (errors / ((1 - share) * nearer.exp() + share)).mean()


def siss(gradients: Gradients, settings: SissSettings) -> Tensor:
    """grad (L_kept + L_r) - s grad L_forgotten, s such that the second is `forget_share` as long as
    grad L_kept.

    L_r: under a label that no forgotten row has, the mixture is of kept rows alone, the loss the usual one.
    """
    g_x, g_a, g_r = gradients.of("siss_kept", "siss", "retain")
    kept, forgotten = dot(g_x, g_x, gradients.total), dot(g_a, g_a, gradients.total)
    scale = settings.forget_share * (kept / (forgotten + TINY)) ** 0.5
    gradients.log["weight/siss"] = scale
    return gradients.sum_of(forget=-scale * g_a, retain=g_x + g_r)
