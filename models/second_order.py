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
    return _Gelu.apply(x)[0] if wanted() else F.gelu(x, approximate="tanh")


def layer_norm(x: Tensor, eps: float) -> Tensor:
    """Layer norm over the last dimension, without scale and shift."""
    return _LayerNorm.apply(x, eps)[0] if wanted() else F.layer_norm(x, x.shape[-1:], eps=eps)


class _Gelu(torch.autograd.Function):
    """Gives beside the result a tensor of no memory that stands for its slope: what a second pass back has to
    say of the slope waits there for the last one, which does all at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        slope = x.new_zeros(()).expand_as(x)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, slope)
        return F.gelu(x, approximate="tanh"), slope

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, of_slope: Tensor | None) -> Tensor:
        x, slope = ctx.saved_tensors
        g = torch.zeros_like(x) if g is None else g
        if of_slope is None:
            return _GeluGrad.apply(g, x, slope)
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        flats = [v.reshape(-1) for v in (x, g, of_slope)]
        # a dozen passes over a piece that stays in cache
        size = CACHE if x.device.type == "cpu" else x.numel()
        for out, *parts in zip(dx.view(-1).split(size), *(flat.split(size) for flat in flats), strict=True):
            _gelu_total(*parts, out=out)
        return dx


class _GeluGrad(torch.autograd.Function):
    """g gelu'(x)."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(g, x)
        return torch.ops.aten.gelu_backward(g, x, approximate="tanh")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gg: Tensor) -> tuple[Tensor, None, Tensor]:
        g, x = ctx.saved_tensors
        return torch.ops.aten.gelu_backward(gg, x, approximate="tanh"), None, gg * g


def _gelu_total(x: Tensor, g: Tensor, of_slope: Tensor, *, out: Tensor) -> None:
    """out = g gelu'(x) + of_slope gelu''(x).

    With u = sqrt(2 / pi) (x + 0.044715 x^3) and s the sigmoid of 2 u: gelu = x s, gelu' = s + s (1 - s) 2 x
    u' and gelu'' = s (1 - s) (4 u' + 2 x u'' + x (2 u')^2 (1 - 2 s)); u' and u'' are made of w = 2 u / x.
    """
    k, c = math.sqrt(2 / math.pi), 0.044715
    w = (x * x).mul_(2 * k * c).add_(2 * k)
    s = (w * x).sigmoid_()
    slope = torch.rsub(w, 4 * k, alpha=3)  # -2 u'
    b = (slope * slope).mul_(x)
    bracket = torch.rsub(w, 20 * k, alpha=12).sub_(b).addcmul_(b, s, value=2)  # of gelu'', negative
    bracket.mul_(of_slope).addcmul_(slope.mul_(x), g)
    torch.mul(g, s, out=out).sub_(torch.ops.aten.sigmoid_backward(bracket, s))


class _LayerNorm(torch.autograd.Function):
    """Gives r = 1 / sqrt(var + eps) beside the result y: of these two its gradient is made, and what a second
    pass back has to say of them waits for the last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        y, _, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y, rstd)
        return y, rstd

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, of_rstd: Tensor | None) -> tuple[Tensor, None]:
        y, rstd = ctx.saved_tensors
        g = torch.zeros_like(y) if g is None else g
        if of_rstd is None:
            return _LayerNormGrad.apply(g, y, rstd), None
        # dr / dx = -r^2 y / n
        along = torch.addcmul(_mean_product(g, y), of_rstd, rstd, value=1 / y.shape[-1])
        return _vector_jacobian(g, y, rstd, along), None


class _LayerNormGrad(torch.autograd.Function):
    """h(g) = r (g - mean g - y m), with m = mean(g y)."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, y: Tensor, rstd: Tensor) -> Tensor:
        ctx.save_for_backward(g, y, rstd)
        return _vector_jacobian(g, y, rstd, _mean_product(g, y))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gg: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """<gg, h> is n r s, with s = mean(gg g) - mean(gg) mean(g) - m q and q = mean(gg y)."""
        g, y, rstd = ctx.saved_tensors
        m, q = _mean_product(g, y), _mean_product(gg, y)
        s = _mean_product(gg, g) - gg.mean(-1, keepdim=True) * g.mean(-1, keepdim=True) - m * q
        dy = (g * (q * -rstd)).addcmul_(gg, m * -rstd)
        return _vector_jacobian(gg, y, rstd, q), dy, s * y.shape[-1]


def _vector_jacobian(g: Tensor, y: Tensor, rstd: Tensor, along: Tensor) -> Tensor:
    """r (g - mean g - y along)"""
    return torch.addcmul(g - g.mean(-1, keepdim=True), y, along, value=-1).mul_(rstd)


def _mean_product(a: Tensor, b: Tensor) -> Tensor:
    """Mean over the last dimension of a * b, kept as 1, without the product in memory."""
    rows = torch.bmm(a.reshape(-1, 1, a.shape[-1]), b.reshape(-1, b.shape[-1], 1))
    return (rows / a.shape[-1]).reshape(*a.shape[:-1], 1)
