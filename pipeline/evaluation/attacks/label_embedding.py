"""The free-embedding attack: with the network frozen, optimise a new embedding for the forgotten label until
it samples the class again.

If it succeeds beyond what it does to a model that never saw the class, the network still holds it and only
the way to it was removed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from models.generative import GenerativeModel
from pipeline.config.measuring import Attacks, Measuring
from pipeline.evaluation.attacks.suite import Attempt
from pipeline.evaluation.attacks.tuning import copied, label_weights, renew_labels, tune
from pipeline.evaluation.context import EvalContext, EvalSpec
from pipeline.evaluation.rows import few_images


@torch.no_grad()
def _at_the_mean(model: GenerativeModel, spec: EvalSpec) -> None:
    table = label_weights(model)
    table[list(spec.forgotten)] = table[list(spec.retained)].mean(0)


@dataclass(frozen=True)
class Start:
    """Where the search begins: in words, and what is done to the label table."""

    about: str
    move: Callable[[GenerativeModel, EvalSpec], None]


STARTS = {
    "own": Start("the label's own embedding", lambda model, spec: None),
    "mean": Start("the mean of the retained labels", _at_the_mean),
    "random": Start("a random embedding", renew_labels),
}


def attempts(settings: Attacks, measuring: Measuring, own: object) -> list[Attempt]:
    return [
        Attempt(
            name=f"embedding from {name}",
            about=f"optimised for {settings.embedding_steps} steps from {start.about}, the network frozen",
            change=partial(attacked_by_embedding, settings=settings, start=name),
        )
        for name, start in STARTS.items()
    ]


def attacked_by_embedding(context: EvalContext, settings: Attacks, start: str) -> EvalContext:
    """With embeddings of the forgotten labels optimised on real images of their classes; nothing else has
    moved."""
    model, spec = copied(context.model), context.spec
    STARTS[start].move(model, spec)
    for parameter in model.net.parameters():
        parameter.requires_grad_(False)
    table = label_weights(model)
    table.requires_grad_(True)
    mask = torch.zeros_like(table)
    mask[list(spec.forgotten)] = 1.0
    tune(
        model,
        {"labels": table},
        few_images(context, settings.embedding_images),
        steps=settings.embedding_steps,
        lr=settings.embedding_lr,
        batch=settings.embedding_batch,
        seed=spec.seed,
        purpose=f"embedding from {start}",
        mask=mask.reshape(-1),
    )
    return replace(context, model=model)
