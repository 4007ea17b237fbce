"""Training an evaluated model a little further: what relearning and the attacks have in common."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from models.generative import GenerativeModel
from pipeline.data.batch import Side
from pipeline.data.cycle import Cycle
from pipeline.evaluation.context import AFTER, EvalContext, EvalSpec
from pipeline.evaluation.metrics.forget_fraction import forget_fraction
from pipeline.evaluation.partials import Shard
from pipeline.evaluation.sampling import sample_images
from pipeline.seeding import generator
from pipeline.unlearning.noising import Relabel, noised_rows
from pipeline.unlearning.optimizer import adamw, apply_gradient
from pipeline.unlearning.parameters import flat, label_weights

CLIP = 1.0
Way = TypeVar("Way")


def copied(model: GenerativeModel) -> GenerativeModel:
    """The model with weights of its own."""
    twin = copy.copy(model)
    twin.net = copy.deepcopy(model.net)
    return twin


@torch.no_grad()
def renew_labels(model: GenerativeModel, spec: EvalSpec) -> None:
    """Give the forgotten labels random embeddings with the mean and deviation of the retained ones."""
    table = label_weights(model)
    retained = table[list(spec.retained)]
    for label in spec.forgotten:
        fresh = torch.randn(table.shape[1], generator=generator(spec.seed, "fresh label", label)).to(table)
        table[label] = retained.mean(0) + retained.std(0) * fresh


def tune(
    model: GenerativeModel,
    named: Mapping[str, nn.Parameter],
    rows: Side,
    *,
    steps: int,
    lr: float,
    batch: int,
    seed: int,
    purpose: str,
    relabel: Relabel | None = None,
    mask: Tensor | None = None,
    stop: Callable[[int], bool] = lambda step: False,
) -> int:
    """Minimise the model's own loss on `rows` over `named` in place; the number of steps taken.

    Row and noise of every step come from (seed, purpose). `mask` (P,) holds still what it is 0 at.
    `stop(step)` is asked after every step, with the model in eval mode.
    """
    cycle, device = Cycle(rows, seed, purpose), next(model.net.parameters()).device
    params = list(named.values())
    optimiser = adamw(params, lr=lr, weight_decay=0.0)
    for step in range(1, steps + 1):
        model.net.train()
        rows_of_step = noised_rows(
            model,
            cycle.take(step - 1, batch, 1, 0, 1),
            seed=seed,
            step=step,
            term=purpose,
            device=device,
            relabel=relabel,
        )
        loss = model.losses(model.net, rows_of_step.x0, rows_of_step.y, rows_of_step.noise).mean()
        gradient = flat(torch.autograd.grad(loss, params, allow_unused=True), params)
        if not torch.isfinite(gradient).all():
            raise ValueError(f"{purpose}: the loss is not finite at step {step}; lower its learning rate")
        apply_gradient(optimiser, params, gradient if mask is None else gradient * mask, lr=lr, clip=CLIP)
        model.net.eval()
        if stop(step):
            return step
    return steps


def share_of(context: EvalContext, model: GenerativeModel, samples: int, purpose: str) -> dict[str, Any]:
    """The forget fraction of about `samples` images of `model`, on noise that (seed, purpose) names."""
    few = replace(
        context.spec,
        retained=(),
        earlier=(),
        settings=context.spec.settings.model_copy(update={"samples": samples, "null_samples": 0}),
        purpose=purpose,
        joint=True,
        top=1,
    )
    alone = replace(context, model=model, base=None, reference=None, spec=few, real={}, spaces={})
    return forget_fraction(few, sample_images(alone, Shard()), AFTER) or {}


def strongest(
    context: EvalContext,
    candidates: Sequence[Way],
    samples: int,
    attacked: Callable[[Way], EvalContext],
) -> EvalContext:
    """The context after the attack in the way, of `candidates` (rates, or starts and rates), that shows the
    class in most of `samples` images. These are of noise of their own: what is chosen is judged on other
    images."""
    if len(candidates) == 1:
        return attacked(candidates[0])

    def share(candidate: EvalContext) -> float:
        candidate.model.net.eval()
        return float(share_of(context, candidate.model, samples, "choice of a rate")["value"])

    return max((attacked(candidate) for candidate in candidates), key=share)
