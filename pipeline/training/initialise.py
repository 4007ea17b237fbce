"""The weights a run begins with: the base model's, or the forgotten labels moved to where their exchange
classes are sampled."""

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.evaluation.confidence import Proportion, proportion
from pipeline.evaluation.sampling import plan, predicted_classes
from pipeline.training.step import Inputs
from pipeline.unlearning.label_init import start_at_exchange

PUSHES = (0.0, 0.1, 0.25, 0.5, 1.0)  # what `push: auto` tries


def begin(inputs: Inputs, record: Callable[[dict[str, Any]], None]) -> dict[int, float]:
    """Move the forgotten rows if the configuration says so; returns how far each goes beyond its exchange
    class. What is tried is recorded.

    With `push: auto` each class takes the one that `best` finds in samples on noise that no check uses. Which
    that is depends on what the base model mixes up: going beyond helps where the exchange class is sometimes
    sampled as the forgotten one, and too far beyond there are no images. Collective: every rank takes part
    and gets the same answer.
    """
    method, exchange, table = (
        inputs.config.method,
        inputs.config.request.exchange_classes_now,
        inputs.model.label_table(),
    )
    fixed = 0.0 if isinstance(method.label_extrapolation, str) else method.label_extrapolation
    if method.label_init == "base" or table is None:
        return dict.fromkeys(exchange, fixed)
    rows = {}
    for c, targets in exchange.items():
        row, trials = table[c].detach().clone(), {}
        for push in PUSHES if method.label_extrapolation == "auto" else ():
            start_at_exchange(table, {c: targets}, push)
            forgotten, exchanged = _called(inputs, c, targets)
            trials[push] = (forgotten, exchanged)
            fractions = {"forget_fraction": forgotten.value, "exchange_fraction": exchanged}
            record({"kind": "start", "step": 0, "class": c, "push": push, **fractions})
            table.data[c] = row
        rows[c] = best(trials, inputs.config.gate.max_forget_fraction) if trials else fixed
        start_at_exchange(table, {c: targets}, rows[c])
    return rows


def best(trials: Mapping[float, tuple[Proportion, float]], target: float) -> float:
    """The push to take, of those tried with the share called forgotten and the share called exchange.

    Of those whose forgotten share is below `target` with its interval, which is what a check asks for, the
    one sampled most as the exchange class; where there is none, the least forgotten. The smaller of equals.
    """
    enough = [push for push, (forgotten, _) in trials.items() if forgotten.high < target]
    if enough:
        return min(enough, key=lambda push: (-trials[push][1], push))
    return min(trials, key=lambda push: (trials[push][0].value, -trials[push][1], push))


def _called(inputs: Inputs, c: int, targets: tuple[int, ...]) -> tuple[Proportion, float]:
    """Shares of the samples under label c that the judge calls c, and one of its exchange classes."""
    config, subject = inputs.config, inputs.subject
    evaluate = config.evaluate
    sampling = plan(
        {c: evaluate.samples},
        seed=config.seed,
        purpose="start",
        cfg_scale=evaluate.cfg_scale,
        steps=evaluate.sampler_steps,
        sampler=evaluate.sampler,
        batch=evaluate.batch,
    )
    training = inputs.model.net.training
    inputs.model.net.eval()
    predictions = predicted_classes(
        inputs.model, subject.judge, sampling, inputs.collectives, to_pixels=subject.to_pixels
    )
    inputs.model.net.train(training)
    return proportion(sum(one == c for one in predictions), len(predictions)), sum(
        one in targets for one in predictions
    ) / len(predictions)
