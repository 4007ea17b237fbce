"""Selective Amnesia (Heng & Soh 2023, arXiv 2305.10120): the forgotten label is trained on noise, held back
by an elastic weight consolidation penalty and by samples of the other labels that the base itself drew."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from models.diffusion import Noise
from pipeline.data.batch import Batch
from pipeline.seeding import generator, seed_of
from pipeline.unlearning.gradients import Gradients
from pipeline.unlearning.methods.preparation import (
    ROWS_AT_ONCE,
    Memory,
    Preparation,
    Tools,
    fisher_diagonal,
    spread,
)
from pipeline.unlearning.methods.settings import MethodSettings
from pipeline.unlearning.noising import Rows
from pipeline.unlearning.parameters import flat

SAMPLER = {"cfg_scale": 2.0, "steps": 20}  # of a model whose config.json names none


class SelectiveAmnesiaSettings(MethodSettings):
    penalty: float = Field(10.0, ge=0, description="lambda of sum F (theta - theta_base)^2")
    replay_weight: float = Field(1.0, ge=0, description="gamma of the replayed samples")
    replay_rows: int = Field(
        500,
        ge=1,
        description="samples of the retained labels, drawn once from the base; the source: 500 each",
    )
    fisher_rows: int = Field(
        50, ge=1, description="samples over which F is averaged; the source: 500 a label"
    )
    fisher_chunks: int = Field(
        20, ge=1, description="pieces of the timesteps; the gradient of each one's loss is squared"
    )


def fisher_and_replay(preparation: Preparation) -> Memory:
    """F, the base weights, and samples to replay; F over samples of all labels, as the base draws them."""
    settings = preparation.settings
    forgotten = sorted(set(preparation.forget.y.tolist()) - set(preparation.retained))
    labels = list(preparation.retained)
    replay = drawn(preparation, [labels[k % len(labels)] for k in range(settings.replay_rows)], "replay")
    every = [*labels, *forgotten]
    labels = spread(every, settings.fisher_rows)
    own = drawn(preparation, [labels[k % len(labels)] for k in range(settings.fisher_rows)], "fisher samples")
    params = list(preparation.named.values())
    fisher = settings.fisher_chunks * fisher_diagonal(
        params, timestep_losses(preparation, own, settings.fisher_chunks)
    )
    base = flat([p.detach().clone() for p in params], params)
    return Memory(vectors={"fisher": fisher, "base": base}, replay=replay)


def timestep_losses(preparation: Preparation, batch: Batch, chunks: int) -> Iterator[Callable[[], Tensor]]:
    """For each row and each of `chunks` stretches of the timesteps, the loss summed over its timesteps and
    over pixels: a piece of the row's negative evidence bound."""
    model = preparation.model
    timesteps = model.time.steps
    rows = preparation.noised(batch, "fisher")
    for place in range(len(batch)):
        g = generator(preparation.seed, "fisher", batch.sample_id[place])
        for chunk in range(chunks):
            t = model.time.stretch(chunk * timesteps // chunks, (chunk + 1) * timesteps // chunks)
            row = rows.take(torch.full((len(t),), place))
            eps = torch.randn(row.x0.shape, generator=g).to(row.x0)
            noised = replace(row, noise=Noise(t=t.to(row.y.device), eps=eps))
            yield partial(_summed, preparation, noised)


def _summed(preparation: Preparation, rows: Rows) -> Tensor:
    """The training loss summed over rows and pixels, ()."""
    return preparation.losses(rows).sum() * rows.x0[0].numel()


@torch.no_grad()
def drawn(preparation: Preparation, labels: list[int], name: str) -> Batch:
    """Samples of the base under `labels`, by its own sampler; every rank draws some of the blocks."""
    model, collectives = preparation.model, preparation.collectives
    weight, sampler = next(model.net.parameters()), model.config.get("sampler", SAMPLER)

    def net(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return model.net(x.to(weight.dtype), t, y).to(x.dtype)

    x, training = torch.zeros(len(labels), *model.shape, device=preparation.device), model.net.training
    model.net.eval()
    for block, start in enumerate(range(0, len(labels), ROWS_AT_ONCE)):
        if block % collectives.world_size == collectives.rank:
            places = range(start, min(start + ROWS_AT_ONCE, len(labels)))
            x[start : places.stop] = model.sample(
                labels=torch.tensor([labels[k] for k in places]),
                seeds=[seed_of(preparation.seed, name, k) for k in places],
                cfg_scale=sampler["cfg_scale"],
                steps=sampler["steps"],
                net=net,
            )
    model.net.train(training)
    return Batch.of(
        sample_id=tuple(f"{name} {k}" for k in range(len(labels))),
        occurrence=(0,) * len(labels),
        y=torch.tensor(labels),
        mean=collectives.sum(x).to(preparation.forget.take([0]).mean),
    )


def noise_images(rows: Rows, batch: Batch, preparation: Preparation, memory: Memory, step: int) -> Rows:
    """`rows` with images uniform in [-1, 1] in the place of theirs: the surrogate q(x | c)."""
    images = [
        torch.rand(
            rows.x0.shape[1:], generator=generator(preparation.seed, step, "surrogate", name, occurrence)
        )
        for name, occurrence in zip(batch.sample_id, batch.occurrence, strict=True)
    ]
    return replace(rows, x0=(2 * torch.stack(images) - 1).to(rows.x0))


def surrogate_loss(tools: Tools, part: Rows) -> Tensor:
    """The training loss of the surrogate under the forgotten label, ()."""
    return tools.model.losses(tools.model.net, part.x0, part.y, part.noise).mean()


def consolidation(tools: Tools) -> Tensor:
    """lambda sum F (theta - theta_base)^2 against losses that are means over pixels, ()."""
    params = list(tools.named.values())
    moved = torch.cat([p.reshape(-1) for p in params]).to(tools.memory["base"]) - tools.memory["base"]
    pixels = torch.Size(tools.model.shape).numel()
    return tools.settings.penalty / pixels * (tools.memory["fisher"] * moved.square()).sum()


def selective_amnesia(gradients: Gradients, settings: SelectiveAmnesiaSettings) -> Tensor:
    """grad (L_surrogate + gamma L_replay + lambda sum F (theta - theta_base)^2) (the authors' train_forget);
    the replayed samples are the retain rows."""
    g_s, g_r, g_p = gradients.of("selective_amnesia", "retain", "consolidation")
    return gradients.sum_of(forget=g_s, retain=settings.replay_weight * g_r + g_p)
