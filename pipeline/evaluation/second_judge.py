"""A second classifier that took no part in a run: it is asked of attacked images what the judge is asked.

Either a judge's folder of weights, or a support vector machine that is fitted to the lake's training rows.
N images, K classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.judge import JUDGES, build_judge
from pipeline.data.lake import Lake
from pipeline.errors import InputError
from pipeline.evaluation.context import EvalContext, SecondJudge
from pipeline.evaluation.partials import scatter
from pipeline.evaluation.rows import pick
from pipeline.evaluation.sampling import Collector, Images, group_sizes
from pipeline.weights.model_folder import Stored, class_count

SVM = "svm"
SECOND = "second"  # its name among the feature spaces of an evaluation, and of its predictions
FITTED_ROWS = 5000  # of a support vector machine, at most: its cost grows with their square
PENALTY = 10.0  # C of it


class SupportVectors:
    """A support vector machine with a radial kernel (Cortes & Vapnik 1995) on pixels."""

    def __init__(self, images: Tensor, labels: Tensor):
        from sklearn.svm import SVC

        self._machine = SVC(C=PENALTY, gamma="scale").fit(_flat(images), labels.numpy())

    def predict(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self._machine.predict(_flat(x)))


def _flat(images: Tensor) -> Any:
    return images.flatten(1).double().cpu().numpy()


@dataclass(frozen=True)
class OfWeights:
    """A judge that was read from a folder."""

    judge: Any

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        return self.judge.logits(x).argmax(1).cpu()


def require(source: str, lake: Lake, judge: Stored, read: Callable[[], Stored], key: str) -> None:
    """Raise `InputError` for a second judge that cannot be asked, or that is the first one: `source` is svm,
    or the folder that `read` reads."""
    if source == SVM:
        if lake.manifest.kind == "latent":
            raise InputError(
                f"{key}: got {SVM}, which looks at pixels, but lake {lake.manifest.name!r} holds latents;"
                " expected the folder of a second judge"
            )
        return
    stored = read()
    if stored.config.get("family") not in JUDGES:
        raise InputError(
            f"{key}: {stored.uri} holds a {stored.config.get('family')}, expected a judge:"
            f" {', '.join(JUDGES)}, or {SVM}"
        )
    if class_count(stored.config) != len(lake.manifest.classes):
        raise InputError(
            f"{key}: knows {class_count(stored.config)} classes, but lake {lake.manifest.name!r} has"
            f" {len(lake.manifest.classes)}"
        )
    if stored.digest == judge.digest:
        raise InputError(
            f"{key}: {stored.uri} is the judge that measures the run; expected one that took no part in it,"
            f" or {SVM}"
        )


def fitted(lake: Lake, seed: int) -> tuple[SupportVectors, float | None]:
    """The machine, and the share of the lake's held-out rows that it is right on; None where nothing was held
    out."""
    train, heldout = pick(lake.read(), FITTED_ROWS, seed, "second judge"), lake.read(split="heldout")
    machine = SupportVectors(train.mean, train.y)
    if not len(heldout):
        return machine, None
    return machine, (machine.predict(heldout.mean) == heldout.y).double().mean().item()


def opened(source: Stored | SupportVectors, device: torch.device) -> SecondJudge:
    """The judge that a worker asks."""
    if isinstance(source, SupportVectors):
        return source
    from models import weights

    judge = build_judge(source.config)
    weights.load_into(judge.net, source.state, source.uri)
    judge.net.to(device).eval()
    return OfWeights(judge)


class Predictions:
    """The second judge as a feature space of one number, its prediction: so that it sees the images that the
    first one sees."""

    net: nn.Module = nn.Identity()
    feature_size = 1

    def __init__(self, judge: SecondJudge):
        self._judge = judge

    def features(self, x: Tensor) -> Tensor:
        return self._judge.predict(x).unsqueeze(1)


def collect_second(context: EvalContext) -> Collector:
    """<side>/<group>/second (N, 2): an image's label and what the second judge predicts."""
    sizes = group_sizes(context.spec)

    def add(group: str, images: Mapping[str, Images]) -> dict[str, Tensor]:
        return {
            f"{side}/{group}/{SECOND}": scatter(sizes[group], own.positions, _rows(own))
            for side, own in images.items()
        }

    return Collector(add=add)


def _rows(images: Images) -> Tensor:
    return torch.cat([images.labels.unsqueeze(1), images.features(SECOND).long()], dim=1)
