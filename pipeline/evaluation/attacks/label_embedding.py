"""The free-embedding attack: with the network frozen, optimise a new embedding for the forgotten label until
it draws the class again.

If it succeeds beyond what it does to a model that never saw the class, the network still holds it and only
the way to it was removed.
"""

from collections.abc import Callable

import torch

from models.generative import GenerativeModel
from pipeline.config.measuring import Attacks
from pipeline.evaluation.attacks.fine_tuning import copied, label_weights, tune
from pipeline.evaluation.context import Bench
from pipeline.evaluation.metrics.relearning import few_images, renew_labels


@torch.no_grad()
def _own(bench: Bench, model: GenerativeModel) -> None:
    """Start from what the label holds now."""


@torch.no_grad()
def _mean(bench: Bench, model: GenerativeModel) -> None:
    """Start from the mean of the retained labels."""
    table = label_weights(model)
    table[list(bench.scope.forgotten)] = table[list(bench.scope.retained)].mean(0)


def _random(bench: Bench, model: GenerativeModel) -> None:
    """Start from a random embedding like the retained ones."""
    renew_labels(model, bench.scope)


STARTS: dict[str, Callable[[Bench, GenerativeModel], None]] = {"own": _own, "mean": _mean, "random": _random}


def attacked_by_embedding(bench: Bench, settings: Attacks, start: str) -> GenerativeModel:
    """The model with embeddings of the forgotten labels optimised on real images of their classes; nothing
    else has moved."""
    model = copied(bench.model)
    STARTS[start](bench, model)
    for parameter in model.net.parameters():
        parameter.requires_grad_(False)
    table = label_weights(model)
    table.requires_grad_(True)
    mask = torch.zeros_like(table)
    mask[list(bench.scope.forgotten)] = 1.0
    tune(
        model,
        {"labels": table},
        few_images(bench, settings.embedding_images),
        steps=settings.embedding_steps,
        lr=settings.embedding_lr,
        batch=settings.embedding_batch,
        seed=bench.scope.seed,
        purpose=f"embedding from {start}",
        mask=mask.reshape(-1),
    )
    return model
