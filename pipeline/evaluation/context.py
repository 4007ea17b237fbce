"""What an evaluation is given: the question as plain data (`EvalSpec`), and the models, judge and rows
that it is asked of (`EvalContext`)."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from models.features.table import FeatureSpace
from models.generative import GenerativeModel
from models.judge import Judge
from pipeline.config.measuring import Measuring
from pipeline.data.batch import Side
from pipeline.evaluation.manifold import Manifold

AFTER, BEFORE, REFERENCE = "after", "before", "reference"
JUDGE = "judge"  # the feature space that is always there: the judge's last hidden layer
# groups of images: under retained labels, under those forgotten earlier, under the null label
RETAINED, EARLIER, UNLABELLED = "retained", "earlier", "null"
Split = Literal["train", "heldout"]
Rows = Callable[[Sequence[int], Split], Side]


class SecondJudge(Protocol):
    """A classifier that took no part in what is evaluated."""

    def predict(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] -> classes (N,), on the CPU."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalSpec:
    """The question, as plain data: which classes were to be forgotten, which are retained, how much is
    sampled. `earlier` are classes that earlier requests had forgotten: in no figure but those of their own.

    The noise of every image is keyed by (seed, purpose). `joint`: forgotten and retained labels are
    sampled in one plan at `settings.cfg_scale` alone, cut into at least `cuts` blocks, and the null label
    only where `settings.null_samples` is not 0; otherwise each CFG scale, the retained labels and the null
    label have a plan of their own.
    """

    forgotten: tuple[int, ...]
    exchange: Mapping[int, Sequence[int]]
    retained: tuple[int, ...]
    neighbours: tuple[int, ...]
    null_label: int
    timesteps: int
    num_classes: int
    earlier: tuple[int, ...] = ()
    seed: int = 0
    settings: Measuring = field(default_factory=Measuring)
    own: Mapping[str, Any] = field(default_factory=dict)  # settings of single metrics, by metric
    conditional: bool = True  # whether the model samples what a label asks for
    sample_ids: tuple[str, ...] = ()  # named samples, which are forgotten beside `forgotten` or alone
    sample_classes: tuple[int, ...] = ()  # the classes they are of
    purpose: str = "measured"
    joint: bool = False
    cuts: int = 1
    top: int = 5  # predictions of the judge that are kept of every image
    skipped: int = 0  # of `settings.samples`: the first ones, that were sampled already

    @property
    def gone(self) -> tuple[int, ...]:
        """The classes that no label should give any more: forgotten now, or earlier."""
        return tuple(sorted({*self.forgotten, *self.earlier}))

    @property
    def forgotten_group(self) -> str:
        """The name of the images under the forgotten labels at the main CFG scale."""
        return forgotten_at(self.settings.cfg_scale)


def forgotten_at(cfg_scale: float) -> str:
    return f"forgotten@{cfg_scale:g}"


@dataclass(frozen=True, kw_only=True)
class EvalContext:
    """`model` is what is evaluated, `base` the same before it forgot, `reference` one that never saw what it
    forgot (None: there is none).

    `rows(labels, split)` reads rows of the lake, by class and sample id. `spaces`: where distances are taken
    beside the judge's features. `real` and `manifolds`: what real rows come to, where that is known already
    (None: it is computed from `rows`). `autocast` surrounds the sampler. `second` judges attacked images
    beside `judge`.
    """

    model: GenerativeModel
    base: GenerativeModel | None = None
    reference: GenerativeModel | None = None
    judge: Judge
    spec: EvalSpec
    rows: Rows
    to_pixels: Callable[[Tensor], Tensor] = lambda x: x
    spaces: Mapping[str, FeatureSpace] = field(default_factory=dict)
    real: Mapping[str, Tensor] | None = None
    manifolds: Mapping[int, Manifold] | None = None
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext
    second: SecondJudge | None = None

    @property
    def sides(self) -> dict[str, GenerativeModel]:
        """The models that are evaluated alike, by name."""
        models = {AFTER: self.model, BEFORE: self.base, REFERENCE: self.reference}
        return {side: model for side, model in models.items() if model is not None}

    @property
    def feature_spaces(self) -> dict[str, FeatureSpace]:
        """The judge's, then the others."""
        return {JUDGE: self.judge, **self.spaces}

    @property
    def device(self) -> torch.device:
        return next(self.judge.net.parameters()).device
