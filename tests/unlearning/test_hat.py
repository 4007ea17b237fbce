"""The hat term: the published formula, exact first and second derivatives at any number of ranks."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from distributed import run_world
from tiny import relative, tiny_hat_judge, tiny_latents, tiny_vae, tiny_vae_rows
from torch import Tensor

from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.gradients import Gradients, LocalGradients
from pipeline.unlearning.losses import Weights, build_terms
from pipeline.unlearning.methods.table import METHODS, method_settings
from pipeline.unlearning.noising import StepRows
from pipeline.unlearning.parameters import flat, select
from pipeline.unlearning.uniformity import uniformity, uniformity_loss

RETAINED = [0, 2, 3]
WEIGHT, PENALTY = 50.0, 1e4  # large: what is wrong cannot hide
KINDS = [
    ("finetune", "exact", 1),
    ("ascent", "exact", 1),
    ("surgery", "exact", 1),
    ("surgery_ascent", "exact", 1),
    ("uno", "exact", 1),
    ("uno", "exact", 2),
    ("uno", "recompute", 2),
]


def take(method: str, hvp: str, micro_batches: int, weight: float = WEIGHT) -> Tensor:
    """The gradient of `method` on this rank's share of rows and latents."""
    collectives, model = Collectives(), tiny_vae()
    params = list(select(model, "all").values())
    latents = tiny_latents(8)
    cut = slice(
        collectives.rank * 8 // collectives.world_size, (collectives.rank + 1) * 8 // collectives.world_size
    )
    hat = uniformity_loss(model, tiny_hat_judge(), latents[cut], RETAINED, collectives)
    rows = [
        tiny_vae_rows(name).part(collectives.rank, collectives.world_size) for name in ("retain", "forget")
    ]
    terms = build_terms(
        model,
        StepRows(retain=rows[0], forget=rows[1], exchange=None),
        Weights(),
        teacher=None,
        micro_batches=micro_batches,
        hat=(lambda: weight * hat()) if weight else None,
    )
    local = LocalGradients(params=params, terms=terms, hvp=hvp)
    gradients = Gradients(index=1, local=local, collectives=collectives)
    own = method_settings(method, {"penalty": PENALTY} if method == "uno" else {})
    return METHODS[method].gradient(gradients, own)


def every() -> dict[str, Tensor]:
    return {f"{method} {hvp} {micro}": take(method, hvp, micro) for method, hvp, micro in KINDS}


def naive(method: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """The whole batch in one graph: `method(L_r, g_f, g_r)` differentiated once more."""
    model = tiny_vae()
    params = list(select(model, "all").values())
    predictions = tiny_hat_judge().logits(model.decode(tiny_latents(8))).softmax(1).mean(0)

    def loss(name: str) -> Tensor:
        rows = tiny_vae_rows(name)
        return model.losses(model.net, rows.x0, rows.y, rows.noise).mean() + WEIGHT * uniformity(
            predictions, RETAINED
        )

    kept, lost = loss("retain"), loss("forget")
    g_f, g_r = (
        torch.cat(
            [torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1) for g, p in zip(grads, params)]
        )
        for grads in (
            torch.autograd.grad(one, params, create_graph=True, allow_unused=True) for one in (lost, kept)
        )
    )
    return flat(torch.autograd.grad(method(kept, g_f, g_r), params), params)


def test_it_is_the_divergence_from_uniform_over_the_kept_classes() -> None:
    p = torch.tensor([0.5, 0.1, 0.3, 0.1], dtype=torch.float64)
    wanted = sum(q * math.log((q + 1e-8) / (u + 1e-8)) for q, u in zip(p.tolist(), (1 / 3, 0, 1 / 3, 1 / 3)))
    assert uniformity(p, RETAINED).item() == pytest.approx(wanted, rel=1e-12)
    even = torch.tensor([1 / 3, 0, 1 / 3, 1 / 3], dtype=torch.float64)
    assert abs(uniformity(even, RETAINED).item()) < 1e-12
    # what is forgotten costs most
    assert uniformity(torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64), RETAINED) > 18


def test_it_pulls_the_samples_and_leaves_the_encoder_alone() -> None:
    model = tiny_vae()
    named = select(model, "all")
    loss = uniformity_loss(model, tiny_hat_judge(), tiny_latents(8), RETAINED, Collectives())()
    moved = {
        name
        for name, grad in zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True))
        if grad is not None and grad.any()
    }
    assert moved and all(name.startswith("decoder.") for name in moved)


def test_it_is_part_of_both_losses_at_any_weight() -> None:
    plain, hat = take("finetune", "exact", 1, 0.0), take("finetune", "exact", 1, 1.0)
    ascent, with_hat = take("ascent", "exact", 1, 0.0), take("ascent", "exact", 1, 1.0)
    # the same gradient, added to L_r and to the ascended L_f
    assert relative(with_hat - ascent, plain - hat) < 1e-10
    assert relative(take("finetune", "exact", 1, 3.0) - plain, 3 * (hat - plain)) < 1e-10


@pytest.fixture(scope="module", params=[1, 2, 4], ids=lambda world_size: f"world {world_size}")
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_world(request.param, every)


def test_every_method_gives_the_update_of_one_process(ranks: list[dict[str, Any]]) -> None:
    for method, hvp, micro in KINDS:
        wanted = take(method, hvp, 1)
        for found in ranks:
            assert relative(found[f"{method} {hvp} {micro}"], wanted) < 1e-12, (method, hvp, micro)


def test_the_penalty_is_that_of_plain_double_backward(ranks: list[dict[str, Any]]) -> None:
    wanted = naive(lambda kept, g_f, g_r: kept + PENALTY * (g_f @ g_r) ** 2 / ((g_f @ g_f) * (g_r @ g_r)))
    without = naive(lambda kept, g_f, g_r: kept)
    assert relative(without, wanted) > 0.01  # the penalty has something to say here
    assert relative(ranks[0]["uno exact 1"], wanted) < 1e-12
    assert relative(ranks[0]["finetune exact 1"], without) < 1e-12
