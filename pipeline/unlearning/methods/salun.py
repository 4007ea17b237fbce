"""SalUn (Fan et al. 2024, arXiv 2310.12508): the forgotten label is trained on what another label predicts,
only in the weights that the forget loss depends on most."""

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from pipeline.data.batch import Batch
from pipeline.seeding import generator
from pipeline.unlearning.gradients import Gradients
from pipeline.unlearning.methods.preparation import Memory, Preparation, Tools, mean_gradient
from pipeline.unlearning.methods.settings import MethodSettings
from pipeline.unlearning.noising import Rows


class SalunSettings(MethodSettings):
    saliency: float = Field(0.5, gt=0, le=1, description="share of the trained parameters that move")
    retain_weight: float = Field(
        3.0,
        ge=0,
        description="weight of L_r; the source's 1e-3 is of losses summed over 3 x 32 x 32 pixels",
    )


def saliency_mask(preparation: Preparation) -> Memory:
    """The mask, once, at the base weights: the share `saliency` of parameters with the largest
    |grad L_f| over all rows to forget, where it is not zero."""
    gradient = mean_gradient(preparation, preparation.forget, "saliency").abs()
    count = max(1, round(preparation.settings.saliency * gradient.numel()))
    threshold = gradient.kthvalue(gradient.numel() - count + 1).values
    # other labels' rows have no forget gradient: a threshold of 0 is no mask
    return Memory(vectors={"mask": (gradient >= threshold) & (gradient > 0)})


def misaligned(rows: Rows, batch: Batch, preparation: Preparation, memory: Memory, step: int) -> Rows:
    """`rows` with c' as the label that is asked for the target: one of the exchange classes of c, or any
    other retained label."""
    labels = []
    for label, name, occurrence in zip(batch.y.tolist(), batch.sample_id, batch.occurrence, strict=True):
        others = preparation.exchange.get(label) or [c for c in preparation.retained if c != label]
        g = generator(preparation.seed, step, "other label", name, occurrence)
        labels.append(others[int(torch.randint(len(others), (), generator=g))])
    return replace(rows, target_y=torch.tensor(labels, device=rows.y.device))


def misalignment_loss(tools: Tools, part: Rows) -> Tensor:
    """|eps(x_t, t, c) - eps(x_t, t, c')|^2 of the student itself, the second held fixed (the authors'
    saliency_unlearn), ()."""
    model = tools.model
    with torch.no_grad():
        target = model.predict(model.net, part.x0, part.target_y, part.noise)
    return model.losses(model.net, part.x0, part.y, part.noise, target=target).mean()


def salun(gradients: Gradients, settings: SalunSettings) -> Tensor:
    """mask (grad L_salun + retain_weight grad L_r)."""
    mask = gradients.memory["mask"]
    g_u, g_r = gradients.of("salun", "retain")
    return gradients.sum_of(forget=mask * g_u, retain=settings.retain_weight * (mask * g_r))
