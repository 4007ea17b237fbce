"""What checks of many classes decide on few images: runs replayed on pretended predictions, once
with every retained class in every check and once with the classes in turn.

A run is a seeded model of forgetting and damage: the forgotten label's share decays and may come back, each
retained class loses a share of its own. Image k of a class at a step is predicted alike in both replays.
C classes, the first of them forgotten.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.config import BenchmarkConfig, Gate
from pipeline.config.benchmark import ChecksBenchmark
from pipeline.evaluation.confidence import proportion
from pipeline.evaluation.metrics.retain_accuracy import accuracy
from pipeline.evaluation.rotation import crossed_already, turn
from pipeline.evaluation.stopping_rule import SettleRule
from pipeline.seeding import generator
from pipeline.training.periodic_eval import Check

FORGOTTEN = 0
TARGET, FLOOR, FLOOR_PATIENCE = 0.05, 0.7, 3
MIN_RETAIN = 0.8  # of the gate, as in jobs/configs/imagenet.yaml


@dataclass(frozen=True)
class Course:
    """How one pretended run goes: probabilities by step."""

    base: Tensor  # (C - 1,) the base's accuracy by retained class
    frail: Tensor  # (C - 1,) how much of the damage falls on each, mean 1
    speed: float  # steps in which forgetting and damage take hold
    remains: float  # of the forgotten class in the end
    rebound: float  # beyond that, after a while
    damage: float  # mean loss of the retained classes in the end

    @staticmethod
    def sampled(classes: int, g: torch.Generator) -> "Course":
        def one(*of: float) -> float:
            return of[int(torch.randint(len(of), (), generator=g))]

        def between(low: float, high: float) -> float:  # evenly in the logarithm
            return low * (high / low) ** float(torch.rand((), generator=g))

        base = 0.85 + 0.12 * torch.randn(classes - 1, generator=g)
        frail = torch.rand(classes - 1, generator=g).clamp(min=1e-6).log().neg()  # exponential
        return Course(
            base=base.clamp(0.3, 1.0),
            frail=frail,
            speed=between(3, 24),
            remains=one(0, 0, 0, 0.005, 0.02, 0.06, 0.15),
            rebound=one(0, 0, 0, 0.04, 0.3),
            damage=between(0.005, 0.8),
        )

    def at(self, step: int) -> tuple[float, Tensor]:
        """(share of the forgotten class, accuracy (C - 1,) of the others)"""
        held = 1 - math.exp(-step / self.speed)
        back = self.rebound * math.exp(-(((step - 8 * self.speed) / (3 * self.speed)) ** 2))
        lost = (self.damage * held * self.frail).clamp(max=1.0)
        return min(1.0, 1 - held * (1 - self.remains) + back), self.base * (1 - lost)


@dataclass(frozen=True)
class Replay:
    images: int
    stop_step: int
    stopped: str
    settled_step: int | None
    best_step: int
    passed: bool

    @property
    def decisions(self) -> tuple[Any, ...]:
        return self.stop_step, self.stopped, self.settled_step, self.passed


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """How many of the runs come to the same decisions, and at what share of the images."""
    settings, pairs = config.checks, []
    for number in range(settings.runs):
        course = Course.sampled(settings.classes, generator(config.seed, "course", number))
        pairs.append(
            tuple(replay(settings, course, config.seed, number, in_turn) for in_turn in (False, True))
        )
    whole, few = zip(*pairs, strict=True)

    def alike(name: str) -> int:
        return sum(getattr(a, name) == getattr(b, name) for a, b in pairs)

    return {
        "benchmark": "checks",
        "runs": settings.runs,
        "same_decisions": alike("decisions"),
        **{f"same_{name}": alike(name) for name in ("stop_step", "stopped", "settled_step", "passed")},
        "same_best_step": alike("best_step"),
        "passed": sum(one.passed for one in whole),
        "stopped": {
            why: sum(one.stopped == why for one in whole) for why in sorted({one.stopped for one in whole})
        },
        "images_over_all_classes": round(sum(r.images for r in few) / sum(r.images for r in whole), 4),
        "images_a_run": round(sum(r.images for r in few) / settings.runs),
        "differ": [
            (number, vars(a), vars(b)) for number, (a, b) in enumerate(pairs) if a.decisions != b.decisions
        ],
        "setting": settings.model_dump(),
    }


def replay(settings: ChecksBenchmark, course: Course, seed: int, number: int, in_turn: bool) -> Replay:
    """One run's checks and their settling rule; the final measure decides on the kept step."""
    retained = list(range(1, settings.classes))
    before = _retained(course, 0, retained, settings.final_retain_samples, (seed, number, "before"))
    rule = SettleRule(
        target=TARGET,
        patience_steps=settings.patience_steps,
        retention_floor=FLOOR * before["mean"],
        floor_patience=FLOOR_PATIENCE,
    )
    images = step = 0
    while step < settings.max_steps and not rule.stopped:
        step += settings.every
        size = settings.rotation if in_turn else len(retained)
        some = turn(retained, size, step // settings.every - 1, seed)
        outcome = _check(settings, course, step, some, (seed, number, step), in_turn)
        images += outcome.decisive.n + outcome.metrics["retain_accuracy"]["intervals"]["mean"]["n"]
        kept = outcome.retained({"retain_accuracy": before}, [FORGOTTEN])
        rule.observe(step, outcome.decisive, kept, others_within=outcome.others_within(Gate()))
    best = rule.best_step or step
    after = _retained(course, best, retained, settings.final_retain_samples, (seed, number, "after"))
    share = course.at(best)[0]
    return Replay(
        images=images,
        stop_step=step,
        stopped=rule.stopped or "steps",
        settled_step=rule.settled_step,
        best_step=best,
        passed=rule.settled_step is not None and share <= TARGET and after["mean"] >= MIN_RETAIN,
    )


def _check(
    settings: ChecksBenchmark,
    course: Course,
    step: int,
    some: tuple[int, ...],
    key: tuple[Any, ...],
    in_turn: bool,
) -> Check:
    share, _ = course.at(step)
    uniform = torch.rand(settings.samples, generator=generator(*key, "forgotten"))
    forgotten = [bool(hit) for hit in uniform < share]
    metrics: dict[str, Any] = {"forget_fraction": _share(forgotten[: settings.first_look])}
    if not (in_turn and crossed_already(metrics, settings.samples, TARGET)):
        metrics["forget_fraction"] = _share(forgotten)
    each = settings.rotation_samples if in_turn else settings.retain_samples
    metrics["retain_accuracy"] = _retained(course, step, list(some), each, key)
    return Check(metrics=metrics, seconds=0.0)


def _share(hits: list[bool]) -> dict[str, Any]:
    return proportion(sum(hits), len(hits)).to_dict() | {"per_class": {}}


def _retained(
    course: Course, step: int, labels: list[int], samples: int, key: tuple[Any, ...]
) -> Mapping[str, Any]:
    """`retain_accuracy` of `samples` images under each of `labels`; those of a label are the same whichever
    others are asked for."""
    _, right = course.at(step)
    uniform = torch.rand(samples, len(right), generator=generator(*key, "retained")).T
    hits = (uniform < right.unsqueeze(1))[[label - 1 for label in labels]]
    asked = [label for label in labels for _ in range(samples)]
    return accuracy(asked, [c if hit else -1 for c, hit in zip(asked, hits.flatten().tolist(), strict=True)])
