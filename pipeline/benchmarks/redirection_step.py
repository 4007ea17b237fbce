"""A step of depth weights beside plain fine-tuning of the same parameters, at the mixture of the defaults.

Lower bound in units of FT(B), B retained rows: a row that is held to the base costs a step's forward
and backward and the base's forward, 4/3; a row under an adversarial embedding the same, and for the adversary
a forward and a backward to its input, 2/3 more.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from models.diffusion import Noise
from models.families.transformer import Transformer
from pipeline.config import StepBenchmark
from pipeline.config.redirection import DEPTH_WEIGHTS, Redirection
from pipeline.runtime.precision import autocast
from pipeline.seeding import generator
from pipeline.unlearning.adversary import Adversary
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.gradients import Gradients, LocalGradients
from pipeline.unlearning.methods.table import METHODS, method_settings
from pipeline.unlearning.noising import Rows
from pipeline.unlearning.parameters import select
from pipeline.unlearning.redirection import ADVERSARY, RedirectionRows, redirection_terms
from pipeline.unlearning.teacher import Teacher

SCALE = 12  # rows of the defaults for one here
FORGOTTEN, EXCHANGE, OTHER = 207, 208, 209


def variants(
    model: Transformer,
    settings: StepBenchmark,
    seed: int,
    *,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    precision: str = "fp32",
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """`finetune_all`, `depth_weights` to be timed, and the bound of `depth_weights_over_finetune`."""
    named, section = select(model, "all"), Redirection()
    teacher, params = Teacher(model, named), list(named.values())
    counts = {
        "retain": int(DEPTH_WEIGHTS["optim"]["batch_size"]),
        "shown": section.label_rows,
        "own": section.label_rows,
        "others": section.others_rows,
        "near": section.near_rows,
        "adversarial": section.rows,
    }
    counts = {name: max(1, count // SCALE) for name, count in counts.items()}
    adversary = Adversary(
        model,
        [FORGOTTEN],
        [EXCHANGE, OTHER],
        size=counts["adversarial"],
        buckets=section.buckets,
        rates=section.embedding_lr,
        restart_every=section.restart_every,
        seed=seed,
    )
    adversary.renew(1)
    step = _step_of(model, section, counts, seed, device)

    def finetune() -> Tensor:
        retain = step.held[0][1]
        with autocast(precision, device):
            loss = model.losses(model.net, retain.x0, retain.y, retain.noise).mean()
        return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, params)])

    def depth_weights() -> Tensor:
        terms = redirection_terms(
            model,
            step,
            section.weight,
            teacher=teacher,
            adversary=adversary,
            autocast=lambda: autocast(precision, device),
        )
        attack = LocalGradients(params=adversary.entries, terms=terms)
        adversary.move(attack.gradient(ADVERSARY, twice=False)[0])
        gradients = Gradients(
            index=1, local=LocalGradients(params=params, terms=terms), collectives=Collectives()
        )
        return METHODS["exchange"].gradient(gradients, method_settings("exchange", {}))

    held = sum(len(part) for _, part in step.held)
    bound = (4 / 3 * held + 2 * counts["adversarial"]) / counts["retain"]
    return {"finetune_all": finetune, "depth_weights": depth_weights}, {
        "depth_weights_over_finetune": round(bound, 2)
    }


def _step_of(
    model: Transformer, section: Redirection, counts: Mapping[str, int], seed: int, device: torch.device
) -> RedirectionRows:
    """Random rows, as many of each kind as `counts` says."""
    g = generator(seed, "redirection rows")

    def rows(count: int, label: int, shown_as: int) -> Rows:
        return Rows(
            x0=torch.randn(count, *model.shape, generator=g).to(device),
            y=torch.full((count,), label, device=device),
            target_y=torch.full((count,), shown_as, device=device),
            noise=Noise(
                t=torch.randint(1000, (count,), generator=g).to(device),
                eps=torch.randn(count, *model.shape, generator=g).to(device),
            ),
        )

    held = [
        (1.0, rows(counts["retain"], EXCHANGE, EXCHANGE)),
        (section.label_weight / 2, rows(counts["shown"], FORGOTTEN, EXCHANGE)),
        (section.label_weight / 2, rows(counts["own"], FORGOTTEN, EXCHANGE)),
        (section.others_weight, rows(counts["others"], OTHER, OTHER)),
        (1.0, rows(counts["near"], OTHER, OTHER)),
    ]
    adversarial = rows(counts["adversarial"], 0, EXCHANGE)
    adversarial.y.copy_(torch.arange(counts["adversarial"]))
    return RedirectionRows(held=held, adversarial=adversarial)
