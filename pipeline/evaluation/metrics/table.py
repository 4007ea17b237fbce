"""The table of metrics: what each is computed from, what it makes of the merged partials, and how a report
calls it. A new one is one file and one line here."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from pipeline.evaluation.context import AFTER, BEFORE, REFERENCE, EvalContext, EvalSpec
from pipeline.evaluation.metrics import membership, relearning, retain_accuracy, timestep_loss
from pipeline.evaluation.metrics.class_shares import class_shares
from pipeline.evaluation.metrics.earlier_fraction import earlier_fraction
from pipeline.evaluation.metrics.exchange_density import collect_balls, exchange_density
from pipeline.evaluation.metrics.exchange_fraction import exchange_fraction
from pipeline.evaluation.metrics.fid import collect_moments, fid
from pipeline.evaluation.metrics.forget_fraction import forget_fraction
from pipeline.evaluation.metrics.kid import collect_mmd, kid
from pipeline.evaluation.metrics.leakage import leakage
from pipeline.evaluation.metrics.paired_drift import collect_drift, paired_drift
from pipeline.evaluation.metrics.precision_recall import collect_features, precision_recall
from pipeline.evaluation.metrics.replication import replication, replication_distances
from pipeline.evaluation.metrics.retrained_reference import retrained_reference
from pipeline.evaluation.own_settings import NoSettings, own_settings
from pipeline.evaluation.partials import Partials, Ranks, all_reduce
from pipeline.evaluation.portions import Portions
from pipeline.evaluation.rotation import crossed_already, looks
from pipeline.evaluation.sampling import Collect, group_sizes, sample_images

Computation = Callable[[EvalContext, Ranks], Partials]
SAMPLED = "sample_images"  # the computation that all metrics of images share
HIDDEN = ("per_class", "per_label", "intervals", "k", "n")  # what a report does not list
PARTS = ("value", "n", "low", "high", "class", "blocks")  # of one figure
SPACES = {
    "judge": "in the judge's features",
    "inception": "in Inception's features",
    "dinov2": "in DINOv2's features",
}


def leaves(result: Mapping[str, Any], words: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Title and figure of all that `result` holds but the figures of single classes: a mapping with a
    `value` is one figure, and what else it holds comes after it."""
    if "value" in result:
        yield "", {key: inner for key, inner in result.items() if key in PARTS}
    for key, inner in result.items():
        if key in HIDDEN or (key in PARTS and "value" in result):
            continue
        title = words.get(key, key.replace("_", " "))
        if isinstance(inner, Mapping):
            for rest, figure in leaves(inner, words):
                yield ("" if title.endswith(" ") else ", ").join(filter(None, [title, rest])), figure
        else:
            yield title, inner


@dataclass(frozen=True, kw_only=True)
class Metric:
    """`result(spec, partials, side)` gives plain data, None where there is nothing to tell.

    `title` and `meaning` are shown by reports; `words` say what parts of the result are, `figures` (result
    -> figure by title) lists them where that is not enough; `shares`: its figures are shares. `collect`
    takes something of every block of sampled images, `computations` are made beside the images; `sampled`
    False: needs no images. `sides` it is taken of; `against`: another side that has to be there.
    `settings`: those of its own, under measuring.<name>, in `spec.own[name]`.
    """

    title: str
    meaning: str
    result: Callable[[EvalSpec, Partials, str], Any]
    collect: Sequence[Collect] = ()
    computations: Sequence[Computation] = ()
    sampled: bool = True
    sides: Sequence[str] = (AFTER, BEFORE, REFERENCE)
    against: str | None = None
    applies: Callable[[EvalSpec], bool] = lambda spec: True
    settings: type[BaseModel] = NoSettings
    shares: bool = False
    words: Mapping[str, str] = field(default_factory=dict)
    figures: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None

    def rows(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Figures by title, as reports list them."""
        return dict(self.figures(result) if self.figures else leaves(result, SPACES | dict(self.words)))


def _classes(spec: EvalSpec) -> bool:
    return bool(spec.forgotten)


def _labels(spec: EvalSpec) -> bool:
    return spec.conditional


def _both(spec: EvalSpec) -> bool:
    return _classes(spec) and _labels(spec)


def _gone(spec: EvalSpec) -> bool:
    return bool(spec.gone) and _labels(spec)


def _exchange(spec: EvalSpec) -> bool:
    return _both(spec) and bool(spec.exchange)


METRICS: dict[str, Metric] = {
    "forget_fraction": Metric(
        title="Forgotten class still sampled",
        meaning="Share of images under the forgotten label that the judge takes for that class.",
        result=forget_fraction,
        applies=_classes,
        shares=True,
        words={"top5": "among the judge's first five", "at_cfg_scale": "CFG "},
    ),
    "earlier_fraction": Metric(
        title="Classes forgotten earlier still sampled",
        meaning="Share of images under labels of earlier requests that the judge takes for those classes.",
        result=earlier_fraction,
        applies=lambda spec: bool(spec.earlier),
        shares=True,
    ),
    "exchange_fraction": Metric(
        title="Exchange class sampled instead",
        meaning="Share of images under the forgotten label that the judge takes for its exchange class.",
        result=exchange_fraction,
        applies=_exchange,
        shares=True,
        words={"at_cfg_scale": "CFG "},
    ),
    "exchange_density": Metric(
        title="Density of real images of the exchange class",
        meaning="How thickly they lie around the samples: 1 for real images, 0 where nothing real is near.",
        result=exchange_density,
        collect=(collect_balls,),
        applies=_exchange,
        words={
            "forgotten": "around images of the forgotten labels",
            "own": "around the exchange labels' own images",
        },
    ),
    "leakage": Metric(
        title="Forgotten class under other labels",
        meaning="Share of images under other labels, and under none, that the judge takes for it.",
        result=leakage,
        applies=_gone,
        shares=True,
    ),
    "retain_accuracy": Metric(
        title="Retained classes predicted right",
        meaning="Share of images under every label that is kept that the judge takes for that class.",
        result=retain_accuracy.retain_accuracy,
        shares=True,
        figures=retain_accuracy.figures,
    ),
    "fid": Metric(
        title="Frechet distance",
        meaning="Between sampled and real images of the retained classes; lower is closer.",
        result=fid,
        collect=(collect_moments,),
        words=SPACES,
    ),
    "class_shares": Metric(
        title="Shares of all images",
        meaning="Which classes a model without labels samples.",
        result=class_shares,
        applies=lambda spec: not spec.conditional,
        shares=True,
    ),
    "membership": Metric(
        title="Loss attack",
        meaning="How well their losses tell forgotten images from never-seen ones.",
        result=membership.membership,
        computations=(membership.membership_losses,),
        sampled=False,
        figures=membership.figures,
    ),
    "replication": Metric(
        title="Near-copies of named images",
        meaning="Share of samples of their labels that are nearer to one of them than to all other images.",
        result=replication,
        computations=(replication_distances,),
        sampled=False,
        applies=lambda spec: bool(spec.sample_ids),
        shares=True,
        words={
            "label_accuracy": "predicted as their label",
            "distance_named": "median distance to the nearest named image",
            "distance_others": "median distance to the nearest other images",
        },
    ),
    "kid": Metric(
        title="Kernel distance",
        meaning="Between sampled and real images of the retained classes; lower is closer.",
        result=kid,
        collect=(collect_moments, collect_mmd),
    ),
    "precision_recall": Metric(
        title="Real-looking and covered",
        meaning="Share of sampled images that look real, and of real ones that could be sampled.",
        result=precision_recall,
        collect=(collect_moments, collect_features),
        shares=True,
    ),
    "paired_drift": Metric(
        title="Drift of the same seed",
        meaning="How far the image of a seed moved under the same retained label.",
        result=paired_drift,
        collect=(collect_moments, collect_drift),
        sides=(AFTER,),
        against=BEFORE,
        applies=_labels,
        words={
            "unpaired": "distance between two seeds of one class",
            "relative": "drift as a share of that",
        },
    ),
    "loss_by_timestep": Metric(
        title="Loss by timestep",
        meaning="The model's own loss on images it was trained on and on never-seen ones.",
        result=timestep_loss.loss_by_timestep,
        computations=(timestep_loss.timestep_losses,),
        sampled=False,
        figures=timestep_loss.figures,
    ),
    "relearn_steps": Metric(
        title="Steps to relearn half",
        meaning="Fine-tuning steps on few forgotten images, against a label that was never trained.",
        result=relearning.relearn_steps,
        computations=(relearning.relearning,),
        sides=(AFTER,),
        applies=_both,
        figures=relearning.figures,
    ),
    "retrained_reference": Metric(
        title="Against a model that never saw it",
        meaning="How far it behaves like that model on the retained labels and the same seeds.",
        result=retrained_reference,
        collect=(collect_moments, collect_drift),
        sides=(AFTER, BEFORE),
        against=REFERENCE,
        words={
            "agreement": "judged like it",
            "fid": "Frechet distance to its images",
            "paired_drift": "drift from it",
            "mean": "",
            "unpaired": "between two images of one class",
            "relative": "as a share of that",
        },
    ),
}
RENAMED = {"membership_auc": "membership"}  # in configurations of earlier runs


def named(names: Collection[str]) -> tuple[str, ...]:
    """Metrics by the names they have now, each once."""
    return tuple(dict.fromkeys(RENAMED.get(name, name) for name in names))


def metric_settings(measuring: BaseModel) -> dict[str, BaseModel]:
    """The metrics' own settings, checked. Raises `InputError` for those that there are not."""
    return own_settings("measuring", measuring, {name: metric.settings for name, metric in METRICS.items()})


def computations_of(
    names: Collection[str], spec: EvalSpec, portion: tuple[int, int] = (0, 1)
) -> dict[str, Computation]:
    """What `names` are computed from, each once; of the images the `portion` (i, n), the i-th of n parts."""
    metrics = [METRICS[name] for name in names if METRICS[name].applies(spec)]
    collect = list(dict.fromkeys(one for metric in metrics for one in metric.collect))
    own = {one.__name__: one for metric in metrics for one in metric.computations}
    if not any(metric.sampled for metric in metrics):
        return own
    return {SAMPLED: lambda context, ranks: sample_images(context, ranks, collect, portion), **own}


def results(
    names: Collection[str], spec: EvalSpec, partials: Mapping[str, Tensor], sides: Collection[str]
) -> dict[str, dict[str, Any]]:
    """{side: {metric: result}}, None where a metric does not apply."""
    by_side: dict[str, dict[str, Any]] = {side: {} for side in sides}
    for name in names:
        metric = METRICS[name]
        there = metric.applies(spec) and (metric.against is None or metric.against in sides)
        for side in (side for side in sides if side in metric.sides):
            by_side[side][name] = metric.result(spec, dict(partials), side) if there else None
    return by_side


def computed(
    names: Collection[str], context: EvalContext, ranks: Ranks, portions: Portions | None = None
) -> Partials:
    """What the metrics `names` are taken from; where there are many images, a part of them at a time, whose
    outcome stays in `portions`. Collective: every rank gets the same."""
    partials: Partials = {}
    count = portions.count(sum(group_sizes(context.spec).values())) if portions else 1
    for name, compute in computations_of(names, context.spec).items():
        if portions and name == SAMPLED and count > 1:
            partials |= portions.summed(
                count,
                ranks,
                context.device,
                lambda number: all_reduce(
                    computations_of(names, context.spec, (number, count))[SAMPLED](context, ranks),
                    ranks,
                    context.device,
                ),
            )
        else:
            partials |= all_reduce(compute(context, ranks), ranks, context.device)
    return partials | dict(context.real or {})


def evaluate(
    names: Collection[str], context: EvalContext, ranks: Ranks, portions: Portions | None = None
) -> dict[str, dict[str, Any]]:
    """{side: {metric: result}} of all sides, going on from `portions`, which takes a context that knows its
    real rows' statistics. Collective: every rank gets the same answer."""
    return results(names, context.spec, computed(names, context, ranks, portions), context.sides)


def evaluate_in_looks(
    names: Collection[str], context: EvalContext, ranks: Ranks, *, first: int, target: float
) -> dict[str, dict[str, Any]]:
    """As `evaluate`, but the forgotten classes' images beyond the `first` ones are sampled only where they
    can still bring the forget fraction of the model itself below `target`."""
    spec = context.spec
    now, rest = looks(spec, first)
    partials = computed(names, replace(context, spec=now), ranks)
    metrics = results(names, now, partials, context.sides)
    if crossed_already(metrics[AFTER], spec.settings.samples, target):
        return metrics
    images = [name for name in names if METRICS[name].sampled]
    for name, rows in computed(images, replace(context, spec=rest, real={}), ranks).items():
        partials[name] = torch.cat([partials[name], rows])  # tables with a row an image, nothing else
    return results(names, spec, partials, context.sides)
