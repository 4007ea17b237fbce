"""The table of methods. A new one is one file and one line here; the contract tests walk this table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from models.generative import GenerativeModel
from pipeline.unlearning.gradients import Gradients
from pipeline.unlearning.methods.ascent import ascent, ascent_descent
from pipeline.unlearning.methods.esd import EsdSettings, esd, esd_loss
from pipeline.unlearning.methods.exchange import exchange
from pipeline.unlearning.methods.finetune import finetune
from pipeline.unlearning.methods.salun import SalunSettings, salun
from pipeline.unlearning.methods.settings import MethodSettings
from pipeline.unlearning.methods.surgery import surgery, surgery_ascent
from pipeline.unlearning.methods.uno import UnoSettings, UnoSSettings, uno, uno_s
from pipeline.unlearning.noising import Rows
from pipeline.unlearning.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method: what it gives the optimiser, and what it needs for that.

    `gradient` takes a step's gradients and the method's settings and returns one vector (P,). `loss`, where
    it has one of its own, is the mean over forget rows of a term called as the method is.
    """

    gradient: Callable[[Gradients, Any], Tensor]
    title: str
    meaning: str
    source: str
    settings: type[MethodSettings] = MethodSettings
    loss: Callable[..., Tensor] | None = None  # (model, forget rows, teacher=, settings=) -> ()
    teacher: bool = False  # asks the frozen base, whatever the targets of the other losses
    labels: bool = False  # has a meaning only for a model that takes labels
    second_order: bool = False  # asks for second-order products, so `hvp` matters
    drives: bool = False  # moves the weights also where what is kept is at its optimum already
    period: Callable[[Any], int] = lambda settings: 1  # steps after which it asks for the same again


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
        title="Ascent and descent in turn",
        meaning="climbs the loss of what is forgotten, then descends that of what is kept",
        source=UNO_SOURCE,
        drives=True,
        period=lambda settings: 2,
    ),
    "surgery_ascent": Method(
        gradient=surgery_ascent,
        title="Ascent with surgery",
        meaning="climbs the loss of what is forgotten where that leaves what is kept alone to first order",
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
        loss=esd_loss,
        title="ESD",
        meaning="steers the forgotten label away from what the base model samples for it",
        source="arXiv 2303.07345",
        teacher=True,
        labels=True,
        drives=True,
    ),
    "salun": Method(
        gradient=salun,
        settings=SalunSettings,
        title="SalUn",
        meaning="the exchange loss on the parameters that what is forgotten depends on most",
        source="arXiv 2310.12508",
    ),
}


def settings_classes() -> dict[str, type[MethodSettings]]:
    """The class of each method's own settings."""
    return {name: method.settings for name, method in METHODS.items()}


def method_settings(name: str, values: Mapping[str, Any]) -> MethodSettings:
    """The own settings of method `name` out of `values`, complete with defaults. Raises `ValueError` for a
    setting that it does not have or a value out of its bounds."""
    return METHODS[name].settings.model_validate(dict(values))


def own_losses(
    name: str, model: GenerativeModel, teacher: Teacher | None, settings: MethodSettings
) -> dict[str, Callable[[Rows], Tensor]]:
    """The loss on forget rows that method `name` has of its own, by the name of its term; none of most."""
    loss = METHODS[name].loss
    return {} if loss is None else {name: partial(loss, model, teacher=teacher, settings=settings)}
