"""The published step as its authors describe and run it, transcribed for comparison: three forwards with
activation checkpointing, gradients with create_graph, and one backward of the whole loss. Single process,
data targets."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from models.dit import DiT
from models.generative import DiTModel
from pipeline.unlearning.noising import Rows, StepRows


def uno(model: DiTModel, params: Sequence[Tensor], rows: StepRows, penalty: float) -> list[Tensor]:
    """grad of L_r + L_x + lambda cos^2(g_f, g_r), everything in one graph."""
    with sdpa_kernel(SDPBackend.MATH):
        keep, forget = _losses(model, rows)
        g_r = torch.autograd.grad(keep, params, create_graph=True)
        g_f = torch.autograd.grad(forget, params, create_graph=True)
        r, f = torch.cat([g.reshape(-1) for g in g_r]), torch.cat([g.reshape(-1) for g in g_f])
        cos = (f @ r) / (f.norm() * r.norm())
        return list(torch.autograd.grad(keep + penalty * cos.square(), params))


def surgery(model: DiTModel, params: Sequence[Tensor], rows: StepRows) -> Tensor:
    """g_r less its projection on g_f."""
    keep, forget = _losses(model, rows)
    r = torch.cat([g.reshape(-1) for g in torch.autograd.grad(keep, params)])
    f = torch.cat([g.reshape(-1) for g in torch.autograd.grad(forget, params)])
    return r - (r @ f) / (f @ f) * f


def _losses(model: DiTModel, rows: StepRows) -> tuple[Tensor, Tensor]:
    assert rows.exchange is not None
    return _loss(model, rows.retain) + _loss(model, rows.exchange), _loss(model, rows.forget)


def _loss(model: DiTModel, rows: Rows) -> Tensor:
    net = cast(DiT, model.net)
    return model.losses(lambda x, t, y: _checkpointed(net, x, t, y), rows.x0, rows.y, rows.noise).mean()


def _checkpointed(net: DiT, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    x = net.x_embedder(x) + net.pos_embed
    c = net.t_embedder(t) + net.y_embedder(y)
    for block in net.blocks:
        x = checkpoint(block, x, c, use_reentrant=False)
    return net.unpatchify(net.final_layer(x, c))
