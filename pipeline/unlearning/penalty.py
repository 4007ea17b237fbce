"""The orthogonality penalty cos^2(g_f, g_r) and gradient surgery on GLOBAL gradients (UNO, arXiv 2506.04712).

cos^2 is not linear in per-worker gradients, and a projection is not either: both take vectors that were
averaged over every rank and micro-batch first. Dot products are accumulated in float64.

P trained parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TINY = 1e-30  # keeps the quotients finite when a gradient vanishes; far below any square norm met in float32
CHUNK = 1 << 20  # elements that are widened to float64 at once


@dataclass(frozen=True)
class Dots:
    """a = g_f.g_r, b = |g_f|^2, c = |g_r|^2, each () in float64 where the gradients lie: nobody waits for
    them."""

    a: Tensor
    b: Tensor
    c: Tensor

    @property
    def cos(self) -> Tensor:
        return self.a / (self.b * self.c + TINY).sqrt()


# sums over this rank's elements of vectors -> over all elements
Total = Callable[[Tensor], Tensor]


def whole(products: Tensor) -> Tensor:
    """The total where every rank holds whole vectors."""
    return products


def dot(x: Tensor, y: Tensor, total: Total = whole) -> Tensor:
    """x.y of two vectors (P,), (), accumulated in float64 a piece at a time."""
    pieces = [p.double() @ q.double() for p, q in zip(x.split(CHUNK), y.split(CHUNK), strict=True)]
    return total(torch.stack(pieces).sum())


def dots(g_f: Tensor, g_r: Tensor, total: Total = whole) -> Dots:
    """All three in one pass over both vectors."""
    pieces = []
    for f, r in zip(g_f.split(CHUNK), g_r.split(CHUNK), strict=True):
        f, r = f.double(), r.double()
        pieces.append(torch.stack([f @ r, f @ f, r @ r]))
    return Dots(*total(torch.stack(pieces, dim=1).sum(dim=1)).unbind())


def penalty_directions(g_f: Tensor, g_r: Tensor, total: Total = whole) -> tuple[Tensor, Tensor, Dots]:
    """u = d cos^2 / d g_f and v = d cos^2 / d g_r at the global gradients, each (P,).

    cos^2 = a^2 / (b c), so u = 2a/(bc) (g_r - (a/b) g_f) and v = 2a/(bc) (g_f - (a/c) g_r). The penalty's
    gradient is then H_f u + H_r v: one vector-Jacobian product through the gradients, linear in the ranks, so
    it can be averaged.

    |v| grows as 1 / |g_r| without end. Where |g_r| is below sqrt(eps) |g_f|, eps the dtype's, its direction
    is mostly rounding (a student that still equals its teacher), and v is no longer than it is there.
    """
    d = dots(g_f, g_r, total)
    factor = 2 * d.a / (d.b * d.c + TINY)
    u = _without(g_r, d.a / (d.b + TINY), g_f).mul_(factor)
    v = _without(g_f, d.a / (d.c + TINY), g_r).mul_(factor)
    rounding = torch.finfo(g_r.dtype).eps * d.b  # of |g_r|^2
    v.mul_(torch.where(d.c < rounding, (d.c / rounding).sqrt(), 1.0))
    return u, v, d


def project_out(
    vector: Tensor,
    direction: Tensor,
    along: tuple[Tensor, Tensor] | None = None,
    total: Total = whole,
) -> Tensor:
    """`vector` less its component along `direction`: gradient surgery (UNO, section 3). `along`: their
    product and the direction's with itself, where they are known."""
    product, square = along or (dot(vector, direction, total), dot(direction, direction, total))
    return _without(vector, product / (square + TINY), direction)


def _without(vector: Tensor, factor: Tensor, other: Tensor) -> Tensor:
    """vector - factor other, in one new vector."""
    scaled = factor * other
    return torch.sub(vector, scaled, out=scaled)
