"""The free-embedding attack: with the network frozen, optimise a new embedding for the forgotten label until
it samples the class again.

If it succeeds beyond what it does to a model that never saw the class, the network still holds it and only
the way to it was removed. At its defaults the search for one class takes 300 steps of 64 rows: 19,200 rows
at each rate from each start. The adversary of depth weights takes 100 steps of 64 / 8 = 8 rows an embedding:
800 rows, 24 times less (pipeline/config/attack_suite.py refuses less than ten times).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from models.generative import GenerativeModel
from pipeline.config.measuring import Attacks, Measuring
from pipeline.evaluation.attacks.suite import Attempt
from pipeline.evaluation.attacks.tuning import copied, renew_labels, strongest, tune
from pipeline.evaluation.context import EvalContext, EvalSpec
from pipeline.evaluation.rows import few_images
from pipeline.unlearning.parameters import label_weights


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
            about=(
                f"optimised for {settings.embedding_steps} steps of {settings.embedding_batch} rows from"
                f" {STARTS[name].about}, {at_rates(settings.embedding_lr)}, the network frozen"
            ),
            change=partial(attacked_by_embedding, settings=settings, start=name),
            budget=search_budget(settings, settings.embedding_steps, settings.embedding_lr),
        )
        for name in settings.embedding_starts
    ]


def at_rates(rates: Sequence[float]) -> str:
    """Learning rates in words."""
    numbers = ", ".join(f"{rate:g}" for rate in rates)
    return f"lr {numbers}" if len(rates) == 1 else f"at the best of the rates {numbers}"


def search_budget(settings: Attacks, steps: int, rates: Sequence[float]) -> dict[str, object]:
    """What a search with the network frozen spends at each rate."""
    return {
        "images": settings.embedding_images,
        "steps": steps,
        "rows": steps * settings.embedding_batch,
        "rates": list(rates),
    }


def free_rows(model: GenerativeModel, rows: Sequence[int]) -> tuple[torch.nn.Parameter, Tensor]:
    """Freeze `model` but for its label table; the table, and a mask that lets `rows` of it move."""
    for parameter in model.net.parameters():
        parameter.requires_grad_(False)
    table = label_weights(model)
    table.requires_grad_(True)
    mask = torch.zeros_like(table)
    mask[list(rows)] = 1.0
    return table, mask.reshape(-1)


def attacked_by_embedding(context: EvalContext, settings: Attacks, start: str) -> EvalContext:
    """With embeddings of the forgotten labels optimised on real images of their classes, at the rate that
    shows the class most; nothing else has moved."""
    images = few_images(context, settings.embedding_images)

    def attacked(lr: float) -> EvalContext:
        model, spec = copied(context.model), context.spec
        STARTS[start].move(model, spec)
        table, mask = free_rows(model, spec.forgotten)
        tune(
            model,
            {"labels": table},
            images,
            steps=settings.embedding_steps,
            lr=lr,
            batch=settings.embedding_batch,
            seed=spec.seed,
            purpose=f"embedding from {start}",
            mask=mask,
        )
        return replace(context, model=model)

    return strongest(context, settings.embedding_lr, settings.choice_samples, attacked)
