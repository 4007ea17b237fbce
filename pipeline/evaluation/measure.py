"""One evaluation of a model: forgetting, retention and Frechet distance from one set of judged samples."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from models.generative import GenerativeModel
from models.judge import Judge
from pipeline.evaluation.forgetting import exchange_fraction, forget_fraction
from pipeline.evaluation.frechet import Moments, frechet_distance, merged
from pipeline.evaluation.proportion import Proportion
from pipeline.evaluation.retention import Retention, retain_accuracy
from pipeline.evaluation.sampling import judge_samples, plan
from pipeline.unlearning.collectives import Collectives


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Whom to ask about what: the judge, the forgotten classes and their exchange, the retained labels that are drawn.

    `reference` holds the moments of the judge's features of real retained rows, for the Frechet distance.
    """

    judge: Judge
    forgotten: tuple[int, ...]
    exchange: Mapping[int, int]
    retained: tuple[int, ...]
    neighbours: tuple[int, ...]
    reference: Moments | None = None
    to_pixels: Callable[[Tensor], Tensor] = lambda x: x


@dataclass(frozen=True, kw_only=True)
class Measures:
    forget: Proportion
    exchange: Proportion | None
    retention: Retention
    fid: Mapping[str, float]
    seconds: float

    def to_result(self) -> dict[str, Any]:
        """The `before` and `after` blocks of result.json."""
        retain = asdict(self.retention)
        return {
            "forget_fraction": self.forget.to_dict(),
            "exchange_fraction": self.exchange.to_dict() if self.exchange else None,
            "retain_accuracy": retain | {"per_class": {str(label): value for label, value in retain["per_class"].items()}},
            "fid": dict(self.fid),
        }

    def to_record(self, step: int) -> dict[str, Any]:
        """The line of metrics.jsonl."""
        return {
            "kind": "evaluation",
            "step": step,
            "forget_fraction": self.forget.value,
            "forget_fraction/low": self.forget.low,
            "forget_fraction/high": self.forget.high,
            "forget_fraction/n": self.forget.n,
            "exchange_fraction": self.exchange.value if self.exchange else None,
            "retain_accuracy/mean": self.retention.mean,
            "retain_accuracy/min": self.retention.min,
            "retain_accuracy/neighbours": self.retention.neighbours,
            **{f"fid/{features}": value for features, value in self.fid.items()},
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
) -> Measures:
    """Draw `forget_samples` images over the forgotten labels together and `retain_samples` for each retained one, and judge them.

    Collective: every rank calls it with the same arguments and gets the same answer. The noise is keyed by (seed, purpose).
    """
    started = time.perf_counter()
    share = -(-forget_samples // len(subject.forgotten))
    counts = dict.fromkeys(subject.retained, retain_samples) | dict.fromkeys(subject.forgotten, share)
    what = plan(counts, seed=seed, purpose=purpose, cfg_scale=cfg_scale, steps=steps, batch=batch)
    training = model.net.training
    model.net.eval()
    verdicts = judge_samples(model, subject.judge, what, collectives, to_pixels=subject.to_pixels)
    model.net.train(training)
    fid = {}
    if subject.reference is not None:
        fid["judge"] = frechet_distance(merged([verdicts.moments[label] for label in subject.retained]), subject.reference)
    return Measures(
        forget=forget_fraction(verdicts, subject.forgotten),
        exchange=exchange_fraction(verdicts, subject.exchange),
        retention=retain_accuracy(verdicts, subject.forgotten, subject.neighbours),
        fid=fid,
        seconds=time.perf_counter() - started,
    )


def feature_moments(judge: Judge, pixels: Sequence[Tensor]) -> Moments:
    """Moments of the judge's features over batches of (N, C, H, W) in [-1, 1]."""
    device = next(judge.net.parameters()).device
    return merged([Moments.of(judge.features(x.to(device))) for x in pixels])
