"""The robustness battery: what may bring a forgotten class back without anybody asking for it, and what an
attacker would try.

Each attack changes a copy of the model, or the way images are drawn from it, and the forgotten labels are
drawn and judged again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.generative import DiTModel, GenerativeModel
from pipeline.config.measuring import Attacks
from pipeline.evaluation.attacks.ancestral import ancestral
from pipeline.evaluation.attacks.fine_tuning import copied, tune
from pipeline.evaluation.attacks.label_embedding import STARTS, attacked_by_embedding
from pipeline.evaluation.attacks.quantization import quantise
from pipeline.evaluation.confidence import proportion
from pipeline.evaluation.context import Bench
from pipeline.evaluation.metrics.retain_accuracy import retain_shares
from pipeline.evaluation.partials import blocks
from pipeline.evaluation.sampling import plan
from pipeline.unlearning.noising import drop_labels
from pipeline.unlearning.parameters import select

Sampler = Callable[..., Tensor]
NULL_SHARE = 0.1  # of the rows that benign fine-tuning sees, as in pretraining


@dataclass(frozen=True, kw_only=True)
class Attack:
    """`about` says in words what is done; `run` does it and judges."""

    kind: str
    about: str
    run: Callable[[Bench], dict[str, Any]]


def attacks(settings: Attacks, cfg_scale: float, steps: int) -> dict[str, Attack]:
    """Every attack of the battery by name; each is independent of the others."""
    made = {
        "none": Attack(
            kind="none", about="the model as it is", run=lambda bench: judged(bench, bench.model, settings)
        ),
        "finetune": Attack(
            kind="finetune",
            about=(
                f"every parameter, on retained rows alone, {settings.finetune_steps} steps, lr"
                f" {settings.finetune_lr:g}"
            ),
            run=lambda bench: judged(bench, finetuned(bench, settings), settings),
        ),
    }
    for kind in ("int8", "bf16"):
        made[kind] = Attack(
            kind="quantise", about=f"weights rounded to {kind}", run=_quantised(settings, kind)
        )
    for scale in settings.cfg_scales:
        made[f"cfg {scale:g}"] = Attack(
            kind="sampler",
            about=f"CFG scale {scale:g} in place of {cfg_scale:g}",
            run=_drawn(settings, cfg_scale=scale),
        )
    for count in settings.sampler_steps:
        made[f"steps {count}"] = Attack(
            kind="sampler",
            about=f"{count} sampler steps in place of {steps}",
            run=_drawn(settings, steps=count),
        )
    made["ancestral"] = Attack(
        kind="sampler",
        about=f"stochastic sampler, {settings.ancestral_steps} steps, in place of a deterministic one",
        run=_drawn(settings, steps=settings.ancestral_steps, stochastic=True),
    )
    for start in STARTS:
        made[f"embedding from {start}"] = Attack(
            kind="embedding",
            about=f"optimised for {settings.embedding_steps} steps from {_START[start]}, the network frozen",
            run=_embedded(settings, start),
        )
    return made


_START = {
    "own": "the label's own embedding",
    "mean": "the mean of the retained labels",
    "random": "a random embedding",
}


def _quantised(settings: Attacks, kind: str) -> Callable[[Bench], dict[str, Any]]:
    def run(bench: Bench) -> dict[str, Any]:
        model = copied(bench.model)
        quantise(model.net, kind)
        return judged(bench, model, settings)

    return run


def _drawn(settings: Attacks, **how: Any) -> Callable[[Bench], dict[str, Any]]:
    return lambda bench: judged(bench, bench.model, settings, **how)


def _embedded(settings: Attacks, start: str) -> Callable[[Bench], dict[str, Any]]:
    return lambda bench: judged(bench, attacked_by_embedding(bench, settings, start), settings)


def finetuned(bench: Bench, settings: Attacks) -> GenerativeModel:
    """The model trained on retained rows alone, as somebody would who knows nothing of what was forgotten."""
    model = copied(bench.model)
    tune(
        model,
        select(model, "all"),
        bench.rows(list(bench.scope.retained), "train"),
        steps=settings.finetune_steps,
        lr=settings.finetune_lr,
        batch=settings.finetune_batch,
        seed=bench.scope.seed,
        purpose="benign fine-tuning",
        relabel=drop_labels(NULL_SHARE, model.null_label),
    )
    return model


@torch.no_grad()
def judged(
    bench: Bench,
    model: GenerativeModel,
    settings: Attacks,
    *,
    cfg_scale: float | None = None,
    steps: int | None = None,
    stochastic: bool = False,
) -> dict[str, Any]:
    """What the judge says of images under the forgotten and the retained labels: {forget_fraction,
    retain_accuracy}."""
    scope, s = bench.scope, bench.scope.settings
    model.net.eval()
    sampler: Sampler = model.sample
    if stochastic:
        assert isinstance(model, DiTModel)
        sampler = lambda **drawn: ancestral(model, **drawn)  # noqa: E731
    counts = dict.fromkeys(scope.retained, settings.retain_samples) | dict.fromkeys(
        scope.forgotten, -(-settings.samples // len(scope.forgotten))
    )
    scale, count = (
        s.cfg_scale if cfg_scale is None else cfg_scale,
        s.sampler_steps if steps is None else steps,
    )
    what = plan(counts, seed=scope.seed, purpose="battery", cfg_scale=scale, steps=count, batch=s.block)
    called: list[int] = []
    for positions in blocks(len(what.labels), s.block, 0, 1):
        labels, seeds = torch.tensor([what.labels[i] for i in positions]), [what.seeds[i] for i in positions]
        x = bench.to_pixels(sampler(labels=labels, seeds=seeds, cfg_scale=scale, steps=count))
        called += bench.judge.logits(x).argmax(1).tolist()
    pairs = list(zip(what.labels, called, strict=True))
    hits = [call == label for label, call in pairs if label in scope.forgotten]
    kept = [(label, call) for label, call in pairs if label not in scope.forgotten]
    retained = retain_shares([label for label, _ in kept], [call for _, call in kept])
    return {
        "forget_fraction": proportion(sum(hits), len(hits)).to_dict(),
        "retain_accuracy": {"mean": retained["mean"], "min": retained["min"]},
    }


def verdict(share: Mapping[str, Any] | None, bound: float) -> str:
    """`holds`: the upper 95 % bound stays below. `returns`: the lower one is above. `open`: the samples
    cannot tell.
    `failed`: the attack could not be carried out, which proves nothing."""
    if share is None:
        return "failed"
    if share["high"] < bound:
        return "holds"
    return "returns" if share["low"] > bound else "open"


def battery_result(
    found: Mapping[str, Mapping[str, Any]], made: Mapping[str, Attack], bound: float
) -> dict[str, Any]:
    """The `battery` block of result.json. `found[name]` is what the attack's run gave, or {"error"}.

    `held`: every attack left the class forgotten beyond doubt. An attack that could not be carried out, or
    that the samples cannot decide, is not one that held.
    """
    lines = []
    for name, attack in made.items():
        got = found.get(name) or {"error": "not run"}
        share = got.get("forget_fraction")
        lines.append(
            {
                "name": name,
                "kind": attack.kind,
                "about": attack.about,
                "forget_fraction": share,
                "retain_accuracy": got.get("retain_accuracy"),
                "seconds": got.get("seconds"),
                "error": got.get("error"),
                "verdict": verdict(share, bound),
            }
        )
    return {"bound": bound, "held": all(line["verdict"] == "holds" for line in lines), "attacks": lines}
