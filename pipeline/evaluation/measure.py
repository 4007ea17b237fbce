"""One evaluation of a model: forgetting, retention and Frechet distance from one set of judged samples."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.features.table import FeatureSpace
from models.generative import GenerativeModel
from models.judge import Judge
from pipeline.data.batch import Batch
from pipeline.evaluation.confidence import Proportion, proportion
from pipeline.evaluation.metrics.class_shares import Shares, shares_of
from pipeline.evaluation.metrics.forget_fraction import (
    ExchangeDensity,
    exchange_density,
    exchange_fraction,
    forget_fraction,
)
from pipeline.evaluation.metrics.frechet import Moments, frechet_distance, merged
from pipeline.evaluation.metrics.manifold import Manifold
from pipeline.evaluation.metrics.membership import Membership, membership, sample_losses
from pipeline.evaluation.metrics.retain_accuracy import Retention, retain_accuracy
from pipeline.evaluation.sampling import Autocast, judge_samples, plan
from pipeline.evaluation.stopping_rule import Measured
from pipeline.seeding import seed_of
from pipeline.unlearning.collectives import Collectives

UNLABELLED = 0  # the label of every image in the plan of a model that reads none
NOT_ASKED = Retention(mean=None, min=None, neighbours=None, per_class={})


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Whom to ask about what: the judge, the forgotten classes and their exchange, the retained labels that
    are drawn.

    `reference` holds the moments of the judge's features of real retained rows, for the Frechet distance;
    `spaces` are further feature spaces, `references` the moments there. `manifolds` hold the judge's features
    of real rows of the exchange classes, for each forgotten class. `members` are the named samples to forget
    and `heldout` never-seen rows of their classes; None where whole classes are forgotten.
    """

    judge: Judge
    forgotten: tuple[int, ...]
    exchange: Mapping[int, Sequence[int]]
    retained: tuple[int, ...]
    neighbours: tuple[int, ...]
    reference: Moments | None = None
    spaces: Mapping[str, FeatureSpace] = field(default_factory=dict)
    references: Mapping[str, Moments] = field(default_factory=dict)
    manifolds: Mapping[int, Manifold] = field(default_factory=dict)
    members: Batch | None = None
    heldout: Batch | None = None
    membership_draws: int = 16
    to_pixels: Callable[[Tensor], Tensor] = lambda x: x


@dataclass(frozen=True, kw_only=True)
class Measures:
    """`forget` where whole classes are forgotten, `membership` where samples are; `shares` where the model
    draws without labels."""

    forget: Proportion | None
    exchange: Proportion | None
    density: ExchangeDensity | None
    membership: Membership | None
    retention: Retention
    fid: Mapping[str, float]
    seconds: float
    shares: Shares | None = None

    @property
    def decisive(self) -> Measured:
        """What the settling rule watches: the forget fraction or, for named samples, the attack's AUC."""
        decisive = self.forget or self.membership
        assert decisive is not None
        return decisive

    def retained(self, before: Mapping[str, Any], forgotten: Sequence[int], n: int) -> Proportion | None:
        """How much is kept: of `n` images under retained labels those drawn right; without labels, overlap
        with the mixture `before`."""
        if self.shares is not None:
            return self.shares.overlap(before["class_shares"], forgotten)
        assert self.retention.mean is not None
        return proportion(round(self.retention.mean * n), n)

    def to_result(self) -> dict[str, Any]:
        """The `before` and `after` blocks of result.json."""
        retain = asdict(self.retention)
        return {
            "forget_fraction": self.forget.to_dict() if self.forget else None,
            "exchange_fraction": self.exchange.to_dict() if self.exchange else None,
            "exchange_density": self.density.to_dict() if self.density else None,
            "retain_accuracy": (
                retain | {"per_class": {str(label): value for label, value in retain["per_class"].items()}}
            ),
            "fid": dict(self.fid),
            **({"class_shares": self.shares.to_dict()} if self.shares else {}),
            **({"membership": self.membership.to_dict()} if self.membership else {}),
        }

    def to_record(self, step: int) -> dict[str, Any]:
        """The line of metrics.jsonl."""
        forget, attack, kept = self.forget, self.membership, self.retention.intervals.get("mean", {})
        return {
            "kind": "evaluation",
            "step": step,
            "forget_fraction": forget.value if forget else None,
            "forget_fraction/low": forget.low if forget else None,
            "forget_fraction/high": forget.high if forget else None,
            "forget_fraction/n": forget.n if forget else None,
            **(
                {
                    "membership_auc": attack.auc,
                    "membership_auc/low": attack.low,
                    "membership_auc/high": attack.high,
                    "loss/members": attack.loss_forget,
                    "loss/heldout": attack.loss_heldout,
                }
                if attack
                else {}
            ),
            "exchange_fraction": self.exchange.value if self.exchange else None,
            "exchange_density": self.density.forgotten.value if self.density else None,
            "retain_accuracy/mean": self.retention.mean,
            **{f"retain_accuracy/mean/{key}": kept[key] for key in ("low", "high", "n") if key in kept},
            "retain_accuracy/min": self.retention.min,
            "retain_accuracy/neighbours": self.retention.neighbours,
            **{f"fid/{features}": value for features, value in self.fid.items()},
            **(
                {f"class_share/{label}": count / self.shares.n for label, count in self.shares.counts.items()}
                if self.shares
                else {}
            ),
            "seconds": self.seconds,
        }


def measure(
    model: GenerativeModel,
    subject: Subject,
    collectives: Collectives,
    *,
    forget_samples: int,
    retain_samples: int,
    seed: int,
    purpose: str,
    cfg_scale: float,
    steps: int,
    batch: int,
    further: bool = False,
    autocast: Autocast = nullcontext,
) -> Measures:
    """Draw `forget_samples` images over the forgotten labels together and `retain_samples` for each retained
    one, and judge them.

    A model without labels draws `forget_samples` in all: the forget fraction is then the share of all samples
    called a forgotten class.
    `further`: the Frechet distance in the subject's further spaces too, which a few images a class would not
    tell much of. `autocast` surrounds the sampler.

    Collective: every rank calls it with the same arguments and gets the same answer. The noise is keyed by
    (seed, purpose).
    """
    started = time.perf_counter()
    share = -(-forget_samples // max(1, len(subject.forgotten)))
    counts = dict.fromkeys(subject.retained, retain_samples) | dict.fromkeys(subject.forgotten, share)
    if not model.conditional:
        counts = {UNLABELLED: forget_samples}
    what = plan(counts, seed=seed, purpose=purpose, cfg_scale=cfg_scale, steps=steps, batch=batch)
    training = model.net.training
    model.net.eval()
    drawn = subject.retained if model.conditional else (UNLABELLED,)
    spaces = subject.spaces if further else {}
    like = {label: real for c, real in subject.manifolds.items() for label in (*subject.exchange[c], c)}
    verdicts = judge_samples(
        model,
        subject.judge,
        what,
        collectives,
        to_pixels=subject.to_pixels,
        spaces=spaces,
        compared=drawn,
        manifolds=like if model.conditional else {},
        autocast=autocast,
    )
    attack = (
        _attack(model, subject, collectives, seed=seed, purpose=purpose, batch=batch)
        if subject.members
        else None
    )
    model.net.train(training)
    fid = {}
    if subject.reference is not None:
        drawn = subject.retained if model.conditional else (UNLABELLED,)
        fid["judge"] = frechet_distance(
            merged([verdicts.moments[label] for label in drawn]), subject.reference
        )
    fid |= {
        name: frechet_distance(moments, subject.references[name])
        for name, moments in verdicts.further.items()
    }
    shares = None if model.conditional else shares_of(verdicts.called, subject.judge.num_classes)
    forget = None
    if subject.forgotten:
        forget = shares.of(subject.forgotten) if shares else forget_fraction(verdicts, subject.forgotten)
    return Measures(
        forget=forget,
        shares=shares,
        membership=attack,
        exchange=exchange_fraction(verdicts, subject.exchange),
        density=exchange_density(verdicts, {c: subject.exchange[c] for c in subject.manifolds}),
        retention=NOT_ASKED if shares else retain_accuracy(verdicts, subject.forgotten, subject.neighbours),
        fid=fid,
        seconds=time.perf_counter() - started,
    )


def _attack(
    model: GenerativeModel, subject: Subject, collectives: Collectives, *, seed: int, purpose: str, batch: int
) -> Membership:
    assert subject.members is not None and subject.heldout is not None
    noise = seed_of(seed, purpose)
    ours, others = (
        sample_losses(
            model, rows, draws=subject.membership_draws, seed=noise, batch=batch, collectives=collectives
        )
        for rows in (subject.members, subject.heldout)
    )
    return membership(ours, others)


def feature_moments(
    space: FeatureSpace, pixels: Sequence[Tensor], device: torch.device | None = None
) -> Moments:
    """Moments of the features, a judge's or another space's, over batches of (N, C, H, W) in [-1, 1]."""
    place = device or next(space.net.parameters()).device
    return merged([Moments.of(space.features(x.to(place))) for x in pixels])
