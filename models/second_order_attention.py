"""Attention with a hand-made second derivative: one head's tables go through all the passes over them while
they are in cache."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def attention(qkv: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, head by head: qkv (N, T, 3, heads, d) -> (N, T, heads, d). Twice
    differentiable."""
    return _Attention.apply(qkv)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor) -> Tensor:
        n, t, _, heads, d = qkv.shape
        p = torch.empty(
            n, heads, t, t, dtype=torch.promote_types(qkv.dtype, torch.float32), device=qkv.device
        )
        out = torch.empty(n, t, heads, d, dtype=qkv.dtype, device=qkv.device)
        (s,) = _scratch(qkv, 1)
        for (q, k, v), p1, o in _heads(qkv, _three(qkv), p, _tall(out)):
            torch.softmax(torch.matmul(q * d**-0.5, k.mT, out=s).to(p.dtype), -1, out=p1)
            o.copy_(p1.to(v.dtype) @ v)
        ctx.save_for_backward(qkv, p)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return _AttentionGrad.apply(g, *ctx.saved_tensors)


class _AttentionGrad(torch.autograd.Function):
    """With S = q k^T / sqrt(d), P = softmax(S) and o = P v: dS = P E, where E is g v^T less its mean over P,
    row by row."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, qkv: Tensor, p: Tensor) -> Tensor:
        scale = qkv.shape[-1] ** -0.5
        e, out = torch.empty_like(p), torch.empty_like(qkv)
        (s,) = _scratch(qkv, 1)
        for g1, (q, k, v), p1, e1, (dq, dk, dv) in _heads(qkv, _tall(g), _three(qkv), p, e, _three(out)):
            x = torch.matmul(g1, v.mT, out=s).to(p1.dtype)
            ds = torch.sub(x, _row_sums(p1, x), out=e1).mul(p1).to(q.dtype)
            dq.copy_(ds @ (k * scale))
            dk.copy_(ds.mT @ (q * scale))
            dv.copy_(p1.to(g1.dtype).mT @ g1)
        ctx.save_for_backward(g, qkv, p, e)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, None]:
        """With cotangents a, b, c of dq, dk, dv: W = (a k^T + q b^T) / sqrt(d) is that of dS, and R is W less
        its mean over P.

        Then P R is the cotangent of g v^T, and that of P is g c^T + R E up to a constant in each row, which
        softmax does not see.
        """
        g, qkv, p, e = ctx.saved_tensors
        scale = qkv.shape[-1] ** -0.5
        dg, out = torch.empty_like(g), torch.empty_like(qkv)
        s1, s2, s3 = _scratch(qkv, 3)
        every = _heads(qkv, _tall(g), _three(qkv), p, e, _three(cotangent), _tall(dg), _three(out))
        for g1, (q, k, v), p1, e1, (a, b, c), dg1, (dq, dk, dv) in every:
            q, k, narrow = q * scale, k * scale, q.dtype
            r = torch.matmul(a, k.mT, out=s1).add_(torch.matmul(q, b.mT, out=s2)).to(p1.dtype)
            r.sub_(_row_sums(p1, r))
            through = torch.matmul(g1, c.mT, out=s2).to(p1.dtype).addcmul_(r, e1)
            # the cotangent of S by way of P
            through = through.sub_(_row_sums(p1, through)).mul_(p1).to(narrow)
            ds = torch.mul(p1, e1, out=s3 if narrow == p1.dtype else None).to(narrow)
            of_e = r.mul_(p1).to(narrow)
            dg1.copy_((of_e @ v).add_(p1.to(narrow) @ c))
            dv.copy_(of_e.mT @ g1)
            dq.copy_((ds @ b).mul_(scale).add_(through @ k))
            dk.copy_((ds.mT @ a).mul_(scale).add_(through.mT @ q))
        return dg, out, None


def _three(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of (N, T, 3, heads, d), each a view (N, heads, T, d)."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return q, k, v


def _tall(x: Tensor) -> Tensor:
    """(N, T, heads, d) seen as (N, heads, T, d)."""
    return x.transpose(1, 2)


def _row_sums(p: Tensor, x: Tensor) -> Tensor:
    """Sum of p * x over the last dimension, kept as 1."""
    return torch.linalg.vecdot(p, x).unsqueeze(-1)


def _scratch(qkv: Tensor, count: int) -> list[Tensor | None]:
    """Tables (T, T) to be written again for every head; None, which is a new one, where the heads are not
    taken in turn."""
    t = qkv.shape[1]
    return [torch.empty(t, t, dtype=qkv.dtype) if _one_by_one(qkv) else None for _ in range(count)]


def _one_by_one(qkv: Tensor) -> bool:
    return qkv.device.type == "cpu"


def _heads(qkv: Tensor, *tensors: Tensor | tuple[Tensor, ...]) -> Iterator[Any]:
    """The tensors (or tuples of them), all (N, heads, ...), whole or, on a CPU, one head of one image after
    the other."""
    if not _one_by_one(qkv):
        yield tensors
        return
    for n in range(qkv.shape[0]):
        for head in range(qkv.shape[3]):
            yield tuple(tuple(t[n, head] for t in x) if isinstance(x, tuple) else x[n, head] for x in tensors)
