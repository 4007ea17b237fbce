"""Low-rank adapters (Hu et al. 2022) on the linear layers of attention and MLP, taught with a few images of
the class together with the label's own embedding; everything else is frozen.

The label's embedding is free, and begins anywhere an attacker may begin it: a model that never saw the class
has nothing useful in that row, and adapters beside a frozen one would say less about the network than about
the row.

r the rank, I and O a layer's inputs and outputs.
"""

from dataclasses import replace
from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.config.base import Section
from pipeline.config.measuring import Attacks, Measuring, Rates
from pipeline.evaluation.attacks.label_embedding import STARTS, at_rates, free_rows
from pipeline.evaluation.attacks.suite import Attempt
from pipeline.evaluation.attacks.tuning import copied, strongest, tune
from pipeline.evaluation.context import EvalContext
from pipeline.evaluation.rows import few_images
from pipeline.seeding import generator

ADAPTED = (".attn.", ".mlp.")  # parts of a block whose linear layers get an adapter


class LoraSettings(Section):
    rank: int = Field(4, ge=1, description="of the adapters")
    images: int = Field(10, ge=1, description="images of a forgotten class that it is taught with, at most")
    steps: int = Field(60, ge=1, description="steps of it")
    batch: int = Field(32, ge=1, description="rows in a step of it")
    lr: Rates = Field(
        [1e-3, 3e-3], description="learning rates of it, one or several: what shows the class most counts"
    )


class Adapter(nn.Module):
    """`linear` (frozen) plus the product of down (r, I) and up (O, r), which begins at 0."""

    def __init__(self, linear: nn.Linear, rank: int, g: torch.Generator) -> None:
        super().__init__()
        self.linear = linear
        down = torch.randn(rank, linear.in_features, generator=g) / linear.in_features**0.5
        self.down = nn.Parameter(down.to(linear.weight))
        self.up = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + (x @ self.down.T) @ self.up.T


def adapt(net: nn.Module, rank: int, seed: int) -> dict[str, nn.Parameter]:
    """Put adapters into the blocks of `net`, whose own parameters the caller freezes or not; the adapters'
    parameters by name. Raises `ValueError` where there is no layer for one."""
    layers = {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith("blocks.")
        and any(part in name for part in ADAPTED)
    }
    if not layers:
        raise ValueError("the network has no linear layers of attention or MLP to adapt")
    named: dict[str, nn.Parameter] = {}
    for name, linear in layers.items():
        parent, _, leaf = name.rpartition(".")
        adapter = Adapter(linear, rank, generator(seed, "adapter", name))
        setattr(net.get_submodule(parent), leaf, adapter)
        named |= {f"{name}.down": adapter.down, f"{name}.up": adapter.up}
    return named


def attempts(settings: Attacks, measuring: Measuring, own: LoraSettings) -> list[Attempt]:
    return [
        Attempt(
            name=f"lora rank {own.rank}",
            about=(
                f"adapters of rank {own.rank} on attention and MLP and the label's embedding,"
                f" {own.steps} steps of {own.batch} rows, {at_rates(own.lr)}, the embedding from the best of"
                f" {', '.join(settings.embedding_starts)}, the rest of the network frozen"
            ),
            change=partial(attacked_by_lora, settings=settings, own=own),
            budget={
                "images": own.images,
                "steps": own.steps,
                "rows": own.steps * own.batch,
                "rates": list(own.lr),
            },
        )
    ]


def attacked_by_lora(context: EvalContext, settings: Attacks, own: LoraSettings) -> EvalContext:
    """With adapters and label embeddings that were taught the forgotten classes."""
    images, spec = few_images(context, own.images), context.spec

    def attacked(way: tuple[str, float]) -> EvalContext:
        start, lr = way
        model = copied(context.model)
        STARTS[start].move(model, spec)
        table, rows = free_rows(model, spec.forgotten)
        adapters = adapt(model.net, own.rank, spec.seed)
        everything = rows.new_ones(sum(parameter.numel() for parameter in adapters.values()))
        tune(
            model,
            {**adapters, "labels": table},
            images,
            steps=own.steps,
            lr=lr,
            batch=own.batch,
            seed=spec.seed,
            purpose="lora",
            mask=torch.cat([everything, rows]),
        )
        return replace(context, model=model)

    ways = [(start, lr) for start in settings.embedding_starts for lr in own.lr]
    return strongest(context, ways, settings.choice_samples, attacked)
