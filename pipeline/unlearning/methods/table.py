"""The table of methods. A new one is one file and one line here; the contract tests walk this table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from pipeline.data.batch import Batch
from pipeline.unlearning.gradients import Gradients
from pipeline.unlearning.methods.ascent import AscentDescentSettings, ascent, ascent_descent
from pipeline.unlearning.methods.erasediff import EraseDiffSettings, erasediff, uniform_noise_loss
from pipeline.unlearning.methods.esd import EsdSettings, esd, esd_loss
from pipeline.unlearning.methods.exchange import exchange
from pipeline.unlearning.methods.finetune import finetune
from pipeline.unlearning.methods.preparation import Memory, Preparation, Tools
from pipeline.unlearning.methods.salun import (
    SalunSettings,
    misaligned,
    misalignment_loss,
    saliency_mask,
    salun,
)
from pipeline.unlearning.methods.selective_amnesia import (
    SelectiveAmnesiaSettings,
    consolidation,
    fisher_and_replay,
    noise_images,
    selective_amnesia,
    surrogate_loss,
)
from pipeline.unlearning.methods.settings import MethodSettings
from pipeline.unlearning.methods.sfr_on import (
    SfrOnSettings,
    forget_remain_mask,
    row_weight,
    sfr_on,
    weighted_loss,
)
from pipeline.unlearning.methods.siss import (
    SissSettings,
    forgotten_loss,
    kept_loss,
    kept_siblings,
    mixture_points,
    siss,
)
from pipeline.unlearning.methods.surgery import surgery, surgery_ascent
from pipeline.unlearning.methods.uno import UnoSettings, UnoSSettings, uno, uno_s
from pipeline.unlearning.noising import Rows


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method: what it gives the optimiser, and what it needs for that.

    `gradient` takes a step's gradients and the method's settings and returns one vector (P,). `losses` are
    terms of its own, means over the forget rows; `penalties` those of the weights alone. `prepare` is called
    once, at the base weights. `forget_rows` changes the rows to forget before the step.
    """

    gradient: Callable[[Gradients, Any], Tensor]
    title: str
    meaning: str
    source: str
    settings: type[MethodSettings] = MethodSettings
    losses: Mapping[str, Callable[[Tools, Rows], Tensor]] = field(default_factory=dict)
    penalties: Mapping[str, Callable[[Tools], Tensor]] = field(default_factory=dict)
    prepare: Callable[[Preparation], Memory] | None = None
    vectors: tuple[str, ...] = ()  # (P,) each, that `prepare` makes
    forget_rows: Callable[[Rows, Batch, Preparation, Memory, int], Rows] | None = None
    teacher: bool = False  # asks the frozen base, whatever the targets of the other losses
    labels: bool = False  # has a meaning only for a model that takes labels
    whole_classes: bool = False  # says nothing about named samples of a class that stays
    exchange: bool = False  # needs an exchange class for every class that is forgotten whole
    second_order: bool = False  # asks for second-order products, so `hvp` matters
    drives: bool = False  # moves the weights also where what is kept is at its optimum already
    summands: bool = False  # says which part of its vector forgets and which retains
    period: Callable[[Any], int] = lambda settings: 1  # steps after which it asks for the same again

    @property
    def own(self) -> bool:
        """Whether it has rows or losses beside those that all methods share."""
        return bool(self.losses or self.prepare or self.forget_rows)


UNO_SOURCE = "arXiv 2506.04712"

METHODS: dict[str, Method] = {
    "finetune": Method(
        gradient=finetune,
        title="Fine-tuning",
        meaning="goes on training on what is kept alone: the control",
        source="",
    ),
    "exchange": Method(
        gradient=exchange,
        title="Exchange loss",
        meaning="trains the forgotten label on its exchange class, and what is kept on itself",
        source=UNO_SOURCE,
    ),
    "ascent": Method(
        gradient=ascent,
        title="Gradient ascent",
        meaning="climbs the loss of what is forgotten",
        source=UNO_SOURCE,
        drives=True,
    ),
    "ascent_descent": Method(
        gradient=ascent_descent,
        settings=AscentDescentSettings,
        title="Ascent and descent in turn",
        meaning="descends the loss of what is retained, then climbs that of what is forgotten",
        source=UNO_SOURCE,
        drives=True,
        summands=True,
        period=lambda settings: 2,
    ),
    "surgery_ascent": Method(
        gradient=surgery_ascent,
        title="Ascent with surgery",
        meaning="climbs the loss of what is forgotten where that leaves the retain loss alone to first order",
        source=UNO_SOURCE,
        drives=True,
    ),
    "surgery": Method(
        gradient=surgery,
        title="Gradient surgery",
        meaning="learns what is kept only where that leaves what is forgotten alone to first order",
        source=UNO_SOURCE,
    ),
    "uno": Method(
        gradient=uno,
        settings=UnoSettings,
        title="UNO",
        meaning="keeps the gradients of what is kept and what is forgotten orthogonal by a penalty on cos^2",
        source=UNO_SOURCE,
        second_order=True,
    ),
    "uno_s": Method(
        gradient=uno_s,
        settings=UnoSSettings,
        title="UNO-S",
        meaning="UNO in turn with gradient surgery",
        source=UNO_SOURCE,
        second_order=True,
        period=lambda settings: settings.surgery_every,
    ),
    "esd": Method(
        gradient=esd,
        settings=EsdSettings,
        losses={"esd": esd_loss},
        title="ESD",
        meaning="steers the forgotten label away from what the base model samples for it",
        source="arXiv 2303.07345",
        teacher=True,
        labels=True,
        whole_classes=True,
        drives=True,
        summands=True,
    ),
    "salun": Method(
        gradient=salun,
        settings=SalunSettings,
        losses={"salun": misalignment_loss},
        prepare=saliency_mask,
        vectors=("mask",),
        forget_rows=misaligned,
        title="SalUn",
        meaning="trains the forgotten label on another, in the weights that the forget loss depends on most",
        source="arXiv 2310.12508",
        labels=True,
        drives=True,
        summands=True,
    ),
    "sfr_on": Method(
        gradient=sfr_on,
        settings=SfrOnSettings,
        losses={"sfr_on": weighted_loss, "row_weight": row_weight},
        prepare=forget_remain_mask,
        vectors=("mask",),
        title="SFR-on",
        meaning="climbs the forget loss in the weights that matter more to it, then repairs what is retained",
        source="arXiv 2409.19732",
        drives=True,
        summands=True,
        period=lambda settings: settings.retain_steps + 1,
    ),
    "erasediff": Method(
        gradient=erasediff,
        settings=EraseDiffSettings,
        losses={"erasediff": uniform_noise_loss},
        title="EraseDiff",
        meaning="trains what is forgotten on uniform noise, as far as that does not hurt what is retained",
        source="arXiv 2401.05779",
        labels=True,
        drives=True,
        summands=True,
    ),
    "siss": Method(
        gradient=siss,
        settings=SissSettings,
        losses={"siss": forgotten_loss, "siss_kept": kept_loss},
        prepare=kept_siblings,
        forget_rows=mixture_points,
        title="SISS",
        meaning="subtracts the score of what is forgotten from that of what is kept, at points of both",
        source="arXiv 2503.01034",
        labels=True,
        exchange=True,
        drives=True,
        summands=True,
    ),
    "selective_amnesia": Method(
        gradient=selective_amnesia,
        settings=SelectiveAmnesiaSettings,
        losses={"selective_amnesia": surrogate_loss},
        penalties={"consolidation": consolidation},
        prepare=fisher_and_replay,
        vectors=("fisher", "base"),
        forget_rows=noise_images,
        title="Selective Amnesia",
        meaning="trains the forgotten label on noise, held back by the Fisher penalty and replayed samples",
        source="arXiv 2305.10120",
        labels=True,
        whole_classes=True,
        drives=True,
        summands=True,
    ),
}


def settings_classes() -> dict[str, type[MethodSettings]]:
    """The class of each method's own settings."""
    return {name: method.settings for name, method in METHODS.items()}


def method_settings(name: str, values: Mapping[str, Any]) -> MethodSettings:
    """The own settings of method `name` out of `values`, complete with defaults. Raises `ValueError` for a
    setting that it does not have or a value out of its bounds."""
    return METHODS[name].settings.model_validate(dict(values))


def own_losses(name: str, tools: Tools) -> dict[str, Callable[[Rows], Tensor]]:
    """The losses on forget rows that method `name` has of its own, by the names of their terms."""
    return {term: partial(loss, tools) for term, loss in METHODS[name].losses.items()}


def own_penalties(name: str, tools: Tools) -> dict[str, Callable[[], Tensor]]:
    """The terms of the weights alone that method `name` has, by their names."""
    return {term: partial(penalty, tools) for term, penalty in METHODS[name].penalties.items()}
