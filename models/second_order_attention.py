"""Attention with a hand-made second derivative: one head's tables go through all the passes over them while
they are in cache."""

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any

import torch
from torch import Tensor


def attention(qkv: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, head by head: qkv (N, T, 3, heads, d) -> (N, T, heads, d). Twice
    differentiable."""
    return _Attention.apply(qkv)[0]


class _Attention(torch.autograd.Function):
    """Gives P = softmax(q k^T / sqrt(d)) beside the result: what a second pass back has to say of P waits for
    the last one, which turns it and the gradient of the result into that of q and k in one."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor) -> tuple[Tensor, Tensor]:
        n, t, _, heads, d = qkv.shape
        p = torch.empty(
            n, heads, t, t, dtype=torch.promote_types(qkv.dtype, torch.float32), device=qkv.device
        )
        out = torch.empty(n, t, heads, d, dtype=qkv.dtype, device=qkv.device)
        (s,) = _scratch(qkv, 1)
        for (q, k, v), p1, o in _heads(qkv, _three(qkv, scaled="q"), p, _tall(out)):
            torch.softmax(torch.matmul(q, k.mT, out=s).to(p.dtype), -1, out=p1)
            torch.matmul(p1.to(v.dtype), v, out=o)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(qkv, p)
        return out, p

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, of_p: Tensor | None) -> Tensor:
        qkv, p = ctx.saved_tensors
        g = torch.zeros_like(qkv[:, :, 0]) if g is None else g
        return _gradient(g, qkv, p, of_p) if of_p is not None else _AttentionGrad.apply(g, qkv, p)


def _gradient(
    g: Tensor, qkv: Tensor, p: Tensor, of_p: Tensor | None = None, *, e: Tensor | None = None
) -> Tensor:
    """That of qkv (N, T, 3, heads, d), from those of the result (N, T, heads, d) and of P: dS = P E, where E,
    left in `e` if there is one, is g v^T + of_p less its mean over P, row by row."""
    out = torch.empty_like(qkv)
    (s,) = _scratch(qkv, 1)
    every = _heads(qkv, _tall(g), _three(qkv, scaled="qk"), p, of_p, e, _three(out))
    for g1, (q, k, v), p1, of_p1, e1, (dq, dk, dv) in every:
        x = torch.matmul(g1, v.mT, out=s).to(p1.dtype)
        if of_p1 is not None:
            x.add_(of_p1)
        ds = torch.sub(x, _row_sums(p1, x), out=e1).mul(p1).to(q.dtype)
        torch.matmul(ds, k, out=dq)
        torch.matmul(ds.mT, q, out=dk)
        torch.matmul(p1.to(g1.dtype).mT, g1, out=dv)
    return out


class _AttentionGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, qkv: Tensor, p: Tensor) -> Tensor:
        e = torch.empty_like(p)
        ctx.save_for_backward(g, qkv, p, e)
        return _gradient(g, qkv, p, e=e)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With cotangents a, b, c of dq, dk, dv: W = (a k^T + q b^T) / sqrt(d) is that of dS, and R is W less
        its mean over P.

        Then P R is the cotangent of g v^T, and that of P is g c^T + R E up to a constant in each row, which
        softmax does not see.
        """
        g, qkv, p, e = ctx.saved_tensors
        scale = qkv.shape[-1] ** -0.5
        dg, out, of_p = torch.empty_like(g), torch.empty_like(qkv), torch.empty_like(p)
        s1, s2, s3 = _scratch(qkv, 3)
        every = _heads(
            qkv,
            _tall(g),
            _three(qkv, scaled="qk"),
            p,
            e,
            _three(cotangent),
            _tall(dg),
            _three(out),
            of_p,
        )
        for g1, (q, k, v), p1, e1, (a, b, c), dg1, (dq, dk, dv), of_p1 in every:
            narrow = q.dtype
            r = torch.matmul(a, k.mT, out=s1).add_(torch.matmul(q, b.mT, out=s2)).to(p1.dtype)
            r.sub_(_row_sums(p1, r))
            torch.addcmul(torch.matmul(g1, c.mT, out=s2).to(p1.dtype), r, e1, out=of_p1)
            ds = torch.mul(p1, e1, out=s3 if narrow == p1.dtype else None).to(narrow)
            of_e = r.mul_(p1).to(narrow)
            torch.add(of_e @ v, p1.to(narrow) @ c, out=dg1)
            torch.matmul(of_e.mT, g1, out=dv)
            torch.mul(ds @ b, scale, out=dq)
            torch.mul(ds.mT @ a, scale, out=dk)
        return dg, out, of_p


def _three(qkv: Tensor, *, scaled: str = "") -> tuple[Tensor, ...]:
    """q, k and v of (N, T, 3, heads, d), each (N, heads, T, d) and a view, but divided by sqrt(d) those that
    `scaled` names."""
    scale = qkv.shape[-1] ** -0.5
    return tuple(
        _tall(x * scale if name in scaled else x) for name, x in zip("qkv", qkv.unbind(2), strict=True)
    )


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


def _heads(qkv: Tensor, *tensors: Tensor | tuple[Tensor, ...] | None) -> Iterator[Any]:
    """The tensors (or tuples of them, or None), all (N, heads, ...), whole or, on a CPU, one head of one
    image after the other."""
    if not _one_by_one(qkv):
        yield tensors
        return
    heads = qkv.shape[0] * qkv.shape[3]

    def each(x: Tensor | tuple[Tensor, ...] | None) -> Iterable[Any]:
        if x is None:
            return repeat(None, heads)
        if isinstance(x, tuple):
            return zip(*map(each, x), strict=True)
        return (head for image in x.unbind() for head in image.unbind())

    yield from zip(*map(each, tensors), strict=True)
