"""Other ways of sampling than the one a run is judged with: other guidance, other numbers of steps, a
stochastic sampler."""

from dataclasses import replace
from functools import partial
from typing import Any

from models.families.transformer import Transformer
from pipeline.config.measuring import Attacks, Measuring
from pipeline.evaluation.attacks.ancestral import with_ancestral_sampler
from pipeline.evaluation.attacks.suite import Attempt
from pipeline.evaluation.context import EvalContext


def attempts(settings: Attacks, measuring: Measuring, own: object) -> list[Attempt]:
    scales = [
        Attempt(
            name=f"cfg {scale:g}",
            about=f"CFG scale {scale:g} in place of {measuring.cfg_scale:g}",
            change=partial(sampled, cfg_scale=scale),
        )
        for scale in settings.cfg_scales
    ]
    counts = [
        Attempt(
            name=f"steps {count}",
            about=f"{count} sampler steps in place of {measuring.sampler_steps}",
            change=partial(sampled, sampler_steps=count),
        )
        for count in settings.sampler_steps
    ]
    steps = settings.ancestral_steps
    ancestral = Attempt(
        name="ancestral",
        about=f"stochastic sampler, {steps} steps, in place of a deterministic one",
        change=lambda context: stochastic(sampled(context, sampler_steps=steps)),
    )
    return [*scales, *counts, ancestral]


def sampled(context: EvalContext, **changes: Any) -> EvalContext:
    """The context with other settings of the sampler."""
    settings = context.spec.settings.model_copy(update=changes)
    return replace(context, spec=replace(context.spec, settings=settings))


def stochastic(context: EvalContext) -> EvalContext:
    if not isinstance(context.model, Transformer):
        raise ValueError("the model takes one pass to an image: there is no other sampler")
    return replace(sampled(context, sampler=None), model=with_ancestral_sampler(context.model))
