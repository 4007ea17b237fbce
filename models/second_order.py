"""The few operations of a transformer whose second derivative PyTorch makes expensive or not at all.

Inside `second_order()` they take forms whose gradient can be differentiated again in a few passes over
memory: attention without the fused kernel (which has no second derivative), GELU and layer norm with
hand-made second derivatives. Outside, they are PyTorch's own. Values and first derivatives are the same
either way, to rounding.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models import second_order_attention

CACHE = 1 << 15  # elements

_wanted: ContextVar[bool] = ContextVar("second_order", default=False)


@contextmanager
def second_order() -> Iterator[None]:
    """Within it, build graphs whose gradients will be differentiated again."""
    token = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(token)


def wanted() -> bool:
    """Whether graphs are being built whose gradients will be differentiated again. Never within
    torch.compile: those are of first order."""
    return not torch.compiler.is_compiling() and _wanted.get()


def attention(qkv: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, head by head: qkv (N, T, 3, heads, d) -> (N, T, heads, d)."""
    if wanted():
        return second_order_attention.attention(qkv)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 x (N, heads, T, d)
    # the fused kernel's backward is slow there: docs/experiments/LOG.md
    if qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16:
        table = torch.softmax((q * q.shape[-1] ** -0.5) @ k.mT, -1, dtype=torch.float32)
        return (table.to(v.dtype) @ v).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form."""
    return _Gelu.apply(x) if wanted() else F.gelu(x, approximate="tanh")


def layer_norm(x: Tensor, eps: float) -> Tensor:
    """Layer norm over the last dimension, without scale and shift."""
    return _LayerNorm.apply(x, eps)[0] if wanted() else F.layer_norm(x, x.shape[-1:], eps=eps)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.gelu(x, approximate="tanh")

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return _GeluGrad.apply(g, *ctx.saved_tensors)


class _GeluGrad(torch.autograd.Function):
    """g gelu'(x)."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(g, x)
        return torch.ops.aten.gelu_backward(g, x, approximate="tanh")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gg: Tensor) -> tuple[Tensor, Tensor]:
        """gelu = x (1 + t) / 2 with t = tanh(u), u = k (x + c x^3), so gelu'' = (1 - t^2) (u' + x (u'' / 2 -
        t u'^2))."""
        g, x = ctx.saved_tensors
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        flats = [v.reshape(-1) for v in (x, g, gg)]
        # a dozen passes over a piece that stays in cache
        size = CACHE if x.device.type == "cpu" else x.numel()
        for out, *parts in zip(dx.view(-1).split(size), *(flat.split(size) for flat in flats), strict=True):
            _gelu_second(*parts, out=out)
        return torch.ops.aten.gelu_backward(gg, x, approximate="tanh"), dx


def _gelu_second(x: Tensor, g: Tensor, gg: Tensor, *, out: Tensor) -> None:
    """out = g gg gelu''(x)."""
    k, c = math.sqrt(2 / math.pi), 0.044715
    square = x * x
    t = (square * (k * c)).add_(k).mul_(x).tanh_()
    slope = square.mul_(3 * k * c).add_(k)  # u'
    torch.mul(slope, slope, out=out).mul_(t).neg_().add_(x, alpha=3 * k * c)  # u'' / 2 - t u'^2
    out.mul_(x).add_(slope)
    out.mul_(t.square_().neg_().add_(1)).mul_(g).mul_(gg)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        y, _, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        ctx.save_for_backward(x, y, rstd)
        ctx.mark_non_differentiable(rstd)
        return y, rstd

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Any) -> tuple[Tensor, None]:
        return _LayerNormGrad.apply(g, *ctx.saved_tensors), None


class _LayerNormGrad(torch.autograd.Function):
    """h(g) = r (g - mean g - y m), with m = mean(g y) and r = 1 / sqrt(var + eps)."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, y: Tensor, rstd: Tensor) -> Tensor:
        h = _vector_jacobian(g, y, rstd)
        ctx.save_for_backward(g, h, y, rstd)
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gg: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """<gg, h> = n r s with s = mean(gg g) - mean(gg) mean(g) - m q, q = mean(gg y); d/dx = -r (s r y + q
        h(g) + m h(gg))."""
        g, h, y, rstd = ctx.saved_tensors
        hh = _vector_jacobian(gg, y, rstd)
        m, q = _mean_product(g, y), _mean_product(gg, y)
        s = _mean_product(gg, g) - gg.mean(-1, keepdim=True) * g.mean(-1, keepdim=True) - m * q
        dx = (y * (s * rstd)).addcmul_(h, q).addcmul_(hh, m).mul_(-rstd)
        return hh, dx, None, None


def _vector_jacobian(g: Tensor, y: Tensor, rstd: Tensor) -> Tensor:
    return torch.addcmul(g - g.mean(-1, keepdim=True), y, _mean_product(g, y), value=-1).mul_(rstd)


def _mean_product(a: Tensor, b: Tensor) -> Tensor:
    """Mean over the last dimension of a * b, kept as 1, without the product in memory."""
    rows = torch.bmm(a.reshape(-1, 1, a.shape[-1]), b.reshape(-1, b.shape[-1], 1))
    return (rows / a.shape[-1]).reshape(*a.shape[:-1], 1)
