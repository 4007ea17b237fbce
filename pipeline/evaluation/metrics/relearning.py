"""Relearning: how many fine-tuning steps on a few forgotten images bring half of the old forget fraction
back.

The same is asked of a label that was never trained (the forgotten label's embedding drawn anew in the same
network). A forgotten label that learns much sooner than that one still held the class.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.generative import GenerativeModel
from pipeline.evaluation.attacks.fine_tuning import copied, label_weights, tune
from pipeline.evaluation.confidence import proportion
from pipeline.evaluation.context import Bench, Scope, pick
from pipeline.evaluation.partials import Ranks, Shard, Sums
from pipeline.evaluation.sampling import draw_blocks, plan
from pipeline.seeding import generator
from pipeline.unlearning.parameters import select

VARIANTS = ("forgotten_label", "never_trained_label")


def relearning(bench: Bench, ranks: Ranks) -> Sums:
    """For each variant the hits (checks,) and images drawn (checks,) after each number of steps, up to the
    first half of all."""
    return {
        name: value
        for index, variant in enumerate(VARIANTS)
        if index % ranks.world == ranks.rank
        for name, value in _curve(bench, variant).items()
    }


def relearn_steps(sums: Mapping[str, Tensor], checks: Sequence[int], old: float) -> dict[str, Any]:
    """For each variant the first check at which the share is half of `old`, None within the budget, and the
    shares on the way."""
    found: dict[str, Any] = {"threshold": old / 2, "budget": checks[-1]}
    for variant in VARIANTS:
        hits, drawn = sums[f"{variant}/hits"].tolist(), sums[f"{variant}/drawn"].tolist()
        curve = [(step, proportion(h, n).to_dict()) for step, h, n in zip(checks, hits, drawn) if n]
        reached = [step for step, share in curve if share["value"] >= old / 2]
        found[variant] = {
            "steps": reached[0] if reached else None,
            "curve": [{"step": step, **share} for step, share in curve],
        }
    return found


def _curve(bench: Bench, variant: str) -> Sums:
    scope, s = bench.scope, bench.scope.settings
    model = copied(bench.model)
    if variant == "never_trained_label":
        renew_labels(model, scope)
    images = few_images(bench, s.relearn_images)
    checks = s.relearn_checks
    hits, drawn = torch.zeros(len(checks), dtype=torch.int64), torch.zeros(len(checks), dtype=torch.int64)

    def check(step: int) -> bool:
        if step not in checks:
            return False
        index = checks.index(step)
        hits[index], drawn[index] = count_forgotten(
            bench, model, s.relearn_samples, purpose=f"relearn at {step}"
        )
        return 2 * int(hits[index]) >= int(drawn[index])

    model.net.eval()
    if not check(0):
        tune(
            model,
            select(model, "all"),
            images,
            steps=checks[-1],
            lr=s.relearn_lr,
            batch=s.relearn_batch,
            seed=scope.seed,
            purpose="relearn",
            stop=check,
        )
    return {f"{variant}/hits": hits, f"{variant}/drawn": drawn}


def few_images(bench: Bench, n: int) -> Any:
    """`n` training rows of each forgotten class."""
    parts = [
        pick(bench.rows([label], "train"), n, bench.scope.seed, f"few of {label}")
        for label in bench.scope.forgotten
    ]
    whole = bench.rows(list(bench.scope.forgotten), "train")
    chosen = {name for part in parts for name in part.sample_id}
    return whole.take([index for index, name in enumerate(whole.sample_id) if name in chosen])


@torch.no_grad()
def renew_labels(model: GenerativeModel, scope: Scope) -> None:
    """Draw the embeddings of the forgotten labels anew, from the mean and deviation of the retained ones."""
    table = label_weights(model)
    kept = table[list(scope.retained)]
    for label in scope.forgotten:
        fresh = torch.randn(table.shape[1], generator=generator(scope.seed, "fresh label", label)).to(table)
        table[label] = kept.mean(0) + kept.std(0) * fresh


def count_forgotten(bench: Bench, model: GenerativeModel, samples: int, *, purpose: str) -> tuple[int, int]:
    """How many of about `samples` images under the forgotten labels the judge calls that class, and of how
    many."""
    scope, s = bench.scope, bench.scope.settings
    counts = dict.fromkeys(scope.forgotten, -(-samples // len(scope.forgotten)))
    what = plan(
        counts, seed=scope.seed, purpose=purpose, cfg_scale=s.cfg_scale, steps=s.sampler_steps, batch=s.block
    )
    found = [
        block.ranked[:, 0] == block.labels
        for block in draw_blocks(model, bench.judge, what, Shard(), to_pixels=bench.to_pixels)
    ]
    return int(torch.cat(found).sum()), len(what.labels)
