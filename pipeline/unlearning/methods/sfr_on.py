"""SFR-on (Huang et al. 2024, arXiv 2409.19732): ascent on the forget loss in the weights that matter more to
what is forgotten than to what is retained, repaired at once by descent on what is retained."""

import math
from collections.abc import Callable, Iterator
from functools import partial

from pydantic import Field
from torch import Tensor

from pipeline.data.batch import Batch
from pipeline.unlearning.gradients import Gradients
from pipeline.unlearning.methods.preparation import Memory, Preparation, Tools, fisher_diagonal, spread
from pipeline.unlearning.methods.settings import MethodSettings
from pipeline.unlearning.noising import Rows

TINY = 1e-15  # of the quotient of Fisher diagonals, as in the authors' code


class SfrOnSettings(MethodSettings):
    alpha: float = Field(
        10.0,
        ge=0,
        description=(
            "weight of the ascent, half a cosine down to 0 over the run; in the source 10 for CIFAR-10 and"
            " 1e-3 for ImageNet"
        ),
    )
    adaptivity: float = Field(
        0.5, ge=0, lt=1, description="lambda: a row counts as its loss to the power -lambda; 0: all alike"
    )
    threshold: float = Field(
        1.0, ge=0, description="gamma: least quotient of the Fisher diagonals (forget / retain) that moves"
    )
    retain_steps: int = Field(1, ge=1, description="descent steps that follow each ascent step")
    fisher_rows: int = Field(256, ge=1, description="rows of either side for the Fisher diagonals")


def forget_remain_mask(preparation: Preparation) -> Memory:
    """I[diag F_forget / diag F_retain >= gamma] at the base weights, from single rows' gradients (the
    authors' generate_fisher.py and generate_mask.py)."""
    settings, side = preparation.settings, preparation.forget
    forget = side.take(spread(range(len(side)), settings.fisher_rows))
    retained = preparation.some_retained(settings.fisher_rows)
    params = list(preparation.named.values())
    f, r = (fisher_diagonal(params, single_losses(preparation, batch)) for batch in (forget, retained))
    return Memory(vectors={"mask": (f + TINY) / (r + TINY) >= settings.threshold})


def single_losses(preparation: Preparation, batch: Batch) -> Iterator[Callable[[], Tensor]]:
    """The training loss of each row by itself."""
    rows = preparation.noised(batch, "fisher")
    for place in range(len(rows)):
        yield partial(_summed, preparation, rows.take(slice(place, place + 1)))


def _summed(preparation: Preparation, rows: Rows) -> Tensor:
    return preparation.losses(rows).sum()


def weighted_loss(tools: Tools, part: Rows) -> Tensor:
    """The mean of l^(1 - lambda) / (1 - lambda), whose gradient is that of l^(-lambda) l with the first
    factor held fixed, ()."""
    model, exponent = tools.model, 1 - tools.settings.adaptivity
    losses = model.losses(model.net, part.x0, part.y, part.noise)
    return (losses.clamp(min=TINY) ** exponent).mean() / exponent


def row_weight(tools: Tools, part: Rows) -> Tensor:
    """The mean of l^(-lambda), by which the ascent is divided: the rows' weights have a mean of 1, ()."""
    model = tools.model
    losses = model.losses(model.net, part.x0, part.y, part.noise)
    return (losses.clamp(min=TINY) ** -tools.settings.adaptivity).mean()


def sfr_on(gradients: Gradients, settings: SfrOnSettings) -> Tensor:
    """-alpha mask grad of the weighted forget loss, then `retain_steps` times grad L_r (the authors'
    forget.py, method ron)."""
    if gradients.index % (settings.retain_steps + 1) != 1:
        return gradients.sum_of(retain=gradients.of("retain")[0])
    (g_f,) = gradients.of("sfr_on")
    alpha = settings.alpha * (1 + math.cos(math.pi * gradients.progress)) / 2
    scale = alpha / gradients.value("row_weight") if settings.adaptivity else alpha
    return gradients.sum_of(forget=-scale * (gradients.memory["mask"] * g_f))
