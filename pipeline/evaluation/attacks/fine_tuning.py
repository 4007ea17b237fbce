"""Benign fine-tuning: further training on retained rows alone, as somebody would who knows nothing of what
was forgotten."""

from dataclasses import replace
from functools import partial

from pipeline.config.measuring import Attacks, Measuring
from pipeline.evaluation.attacks.suite import Attempt
from pipeline.evaluation.attacks.tuning import copied, tune
from pipeline.evaluation.context import EvalContext
from pipeline.unlearning.noising import drop_labels
from pipeline.unlearning.parameters import select

NULL_SHARE = 0.1  # of the rows that it sees, as in pretraining


def attempts(settings: Attacks, measuring: Measuring, own: object) -> list[Attempt]:
    steps, lr = settings.finetune_steps, settings.finetune_lr
    about = f"every parameter, on retained rows alone, {steps} steps, lr {lr:g}"
    return [Attempt(name="finetune", about=about, change=partial(finetuned, settings=settings))]


def finetuned(context: EvalContext, settings: Attacks) -> EvalContext:
    model = copied(context.model)
    tune(
        model,
        select(model, "all"),
        context.rows(list(context.spec.retained), "train"),
        steps=settings.finetune_steps,
        lr=settings.finetune_lr,
        batch=settings.finetune_batch,
        seed=context.spec.seed,
        purpose="benign fine-tuning",
        relabel=drop_labels(NULL_SHARE, model.null_label),
    )
    return replace(context, model=model)
