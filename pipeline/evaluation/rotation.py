"""Checks of many classes: the retained ones in turn, and forgotten images only as far as they decide.

K retained classes, m of them in a check. Which ones is a function of the check's number alone: in any
ceil(K / m) checks in a row every class is sampled.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from pipeline.config import UnlearnConfig
from pipeline.errors import InputError
from pipeline.evaluation.confidence import Proportion, half_width, proportion
from pipeline.evaluation.context import EvalSpec
from pipeline.seeding import generator


def checks_to_see_all(classes: int, size: int) -> int:
    return -(-classes // size)


def require_rotation(config: UnlearnConfig, classes: int) -> None:
    """Raise `InputError` where the run's checks are too few to see each of `classes` retained ones once."""
    evaluate, steps = config.evaluate, config.optim.max_steps
    if evaluate.rotation is None:
        return
    made = -(-steps // evaluate.every)
    made = min(made, evaluate.max_checks or made)
    needed = checks_to_see_all(classes, evaluate.rotation)
    if needed > made:
        raise InputError(
            f"evaluate.rotation: {evaluate.rotation} of {classes} retained classes a check need {needed}"
            f" checks to see every one, and the run makes at most {made} (optim.max_steps, evaluate.every,"
            f" evaluate.max_checks); give {-(-classes // made)} or more"
        )


def turn(retained: Sequence[int], size: int, number: int, seed: int) -> tuple[int, ...]:
    """The classes, `size` of `retained`, of check `number` (0, 1, ...), in increasing order."""
    classes = len(retained)
    if size >= classes:
        return tuple(retained)
    order = torch.randperm(classes, generator=generator(seed, "rotation")).tolist()
    return tuple(sorted(retained[order[(number * size + k) % classes]] for k in range(size)))


def paired(before: Mapping[str, Any], now: Mapping[str, Any]) -> Proportion:
    """What `retain_accuracy` would be over all classes of `before`, estimated from those of `now`: the mean
    of `before`, moved by the mean change of the classes that both hold.

    The interval has the classes' spread in it (Student, over classes) and is nowhere narrower than Wilson's
    of the images: had all classes changed alike, one that differs could have gone unseen.
    """
    change = [value - before["per_class"][label] for label, value in now["per_class"].items()]
    moved = statistics.fmean(change)
    value = min(max(before["mean"] + moved, 0.0), 1.0)
    images = now["intervals"]["mean"]
    spread = half_width(statistics.variance(change), len(change)) if len(change) > 1 else 0.0
    return Proportion(
        value,
        images["n"],
        max(value - max(spread, images["value"] - images["low"]), 0.0),
        min(value + max(spread, images["high"] - images["value"]), 1.0),
    )


class Window:
    """What the latest checks saw of every class: {label: (step, hits, images)}."""

    def __init__(self, seen: Mapping[str, Sequence[int]] | None = None) -> None:
        self._seen = {label: (one[0], one[1], one[2]) for label, one in (seen or {}).items()}

    def add(self, step: int, accuracy: Mapping[str, Any]) -> None:
        """The retain_accuracy of the check of `step`."""
        for label, share in accuracy["intervals"]["per_class"].items():
            self._seen[label] = (step, round(share["value"] * share["n"]), share["n"])

    def plain(self) -> dict[str, list[int]]:
        return {label: list(one) for label, one in self._seen.items()}

    def record(self) -> dict[str, Any]:
        """For a line of metrics.jsonl: how many classes were seen so far, since which step, and the share of
        each one's latest images that were predicted right, all together (the weights moved meanwhile)."""
        steps, hits, images = zip(*self._seen.values(), strict=True)
        share = proportion(sum(hits), sum(images))
        return {
            "rotation/classes": len(steps),
            "rotation/since": min(steps),
            "rotation/accuracy": share.value,
            "rotation/accuracy/low": share.low,
            "rotation/accuracy/high": share.high,
            "rotation/accuracy/n": share.n,
        }


def looks(spec: EvalSpec, first: int) -> tuple[EvalSpec, EvalSpec]:
    """`spec` cut in two: `first` images of the classes forgotten now and as many of those forgotten earlier,
    with all of the retained ones; then the rest of what is forgotten. The same images as in one."""
    return (
        replace(spec, settings=spec.settings.model_copy(update={"samples": first})),
        replace(spec, retained=(), neighbours=(), skipped=first),
    )


def crossed_already(metrics: Mapping[str, Any], samples: int, target: float) -> bool:
    """Whether so many of the images looked at are of a forgotten class that the share of all `samples` is
    not below `target`, whatever the others are: the check is decided."""
    share = metrics["forget_fraction"]
    return bool(share) and round(share["value"] * share["n"]) >= target * samples
