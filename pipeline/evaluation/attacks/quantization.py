"""Weights as a deployment may round them: int8 with a scale per output channel, or bfloat16."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.config.measuring import Attacks, Measuring
from pipeline.evaluation.attacks.suite import Attempt
from pipeline.evaluation.attacks.tuning import copied
from pipeline.evaluation.context import EvalContext


def attempts(settings: Attacks, measuring: Measuring, own: object) -> list[Attempt]:
    return [
        Attempt(
            name=kind,
            about=f"weights rounded to {kind}",
            change=partial(quantised, kind=kind),
        )
        for kind in ("int8", "bf16")
    ]


def quantised(context: EvalContext, kind: str) -> EvalContext:
    model = copied(context.model)
    quantise(model.net, kind)
    return replace(context, model=model)


def to_int8(weight: Tensor) -> Tensor:
    """`weight` (out, ...) rounded to 255 levels per output channel, symmetric, and back to its own dtype."""
    rows = weight.detach().reshape(len(weight), -1)
    scale = rows.abs().amax(dim=1, keepdim=True) / 127
    levels = (rows / scale.clamp(min=torch.finfo(rows.dtype).tiny)).round().clamp(-127, 127)
    return (levels * scale).reshape(weight.shape)


def to_bf16(weight: Tensor) -> Tensor:
    return weight.detach().to(torch.bfloat16).to(weight.dtype)


@torch.no_grad()
def quantise(net: nn.Module, kind: str) -> None:
    """Round the weights of `net` in place: `bf16` every parameter, `int8` those with two dimensions or more
    (biases stay)."""
    for parameter in net.parameters():
        if kind == "bf16":
            parameter.copy_(to_bf16(parameter))
        elif parameter.dim() >= 2:
            parameter.copy_(to_int8(parameter))
