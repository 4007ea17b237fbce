"""A step of one method on tiny rows, alone or as one rank of many, and the same gradient by plain double
backward."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from tiny import share, tiny_batch, tiny_dit, tiny_step_rows
from torch import Tensor, nn

from models.families.transformer import Transformer
from pipeline.data.batch import Batch
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.gradients import Gradients, LocalGradients
from pipeline.unlearning.losses import Weights, build_terms
from pipeline.unlearning.methods.preparation import Memory, Preparation, Tools
from pipeline.unlearning.methods.settings import MethodSettings
from pipeline.unlearning.methods.table import METHODS, method_settings, own_losses, own_penalties
from pipeline.unlearning.noising import StepRows
from pipeline.unlearning.parameters import flat, select
from pipeline.unlearning.teacher import Teacher

SUBSET = "labels_and_adaln:1"
PENALTY = 0.7  # large: a wrong sign or factor cannot hide
# small enough for a test, and nothing at its default that a formula could hide behind
SMALL: dict[str, dict[str, Any]] = {
    "uno": {"penalty": PENALTY},
    "uno_s": {"penalty": PENALTY},
    "esd": {"sampler_steps": 5, "eta": 2.0},
    "sfr_on": {"fisher_rows": 5, "alpha": 2.0},
    "erasediff": {"eta": 2.0},
    "selective_amnesia": {"penalty": 0.3, "replay_rows": 6, "fisher_rows": 2, "fisher_chunks": 3},
}


def student(
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float64,
    learn_sigma: bool = False,
    subset: str = SUBSET,
    family: str = "dit",
) -> tuple[Transformer, dict[str, nn.Parameter], Teacher]:
    """A model, its trainable parameters and a teacher from which it has moved away already."""
    model = tiny_dit(seed=seed, dtype=dtype, learn_sigma=learn_sigma, family=family)
    named = select(model, subset)
    teacher = Teacher(model, named)
    with torch.no_grad():
        for index, parameter in enumerate(named.values()):
            shift = torch.randn(
                parameter.shape,
                generator=torch.Generator().manual_seed(1000 * seed + index),
                dtype=torch.float64,
            )
            parameter.add_(0.05 * shift.to(dtype))
    return model, named, teacher


def preparation(settings: MethodSettings, seed: int = 0, **options: Any) -> Preparation:
    """Of class 1, to become 2, at the weights from which `student` has moved."""
    base = tiny_dit(seed=seed, **options)
    dtype = next(base.net.parameters()).dtype
    return Preparation(
        model=base,
        named=select(base, SUBSET),
        forget=tiny_batch([1], each=5, seed=2, dtype=dtype),
        rows_of=lambda labels: tiny_batch(labels, each=4, seed=8, dtype=dtype),
        retained=[0, 2, 3],
        exchange={1: (2,)},
        settings=settings,
        seed=3,
        device=torch.device("cpu"),
        collectives=Collectives(),
    )


def own_rows(method: str, rows: StepRows, given: Preparation, memory: Memory) -> StepRows:
    """`rows` with those to forget as the method wants them."""
    if METHODS[method].forget_rows is None:
        return rows
    names = tuple(f"forget-{k}" for k in range(len(rows.forget)))
    batch = Batch.of(sample_id=names, occurrence=(0,) * len(names), y=rows.forget.y, mean=rows.forget.x0)
    change = METHODS[method].forget_rows
    assert change is not None
    return replace(rows, forget=change(rows.forget, batch, given, memory, 1))


def take_step(
    method: str,
    rows: StepRows,
    *,
    seed: int = 0,
    index: int = 1,
    micro_batches: int = 1,
    hvp: str = "exact",
    weights: Weights | None = None,
    collectives: Collectives | None = None,
    settings: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float64,
    learn_sigma: bool = False,
    family: str = "dit",
    fd_radius: float = 2e-2,
    joint: bool = True,
) -> Tensor:
    """The gradient (P,) that `method` gives the optimiser, on this rank's share of `rows`."""
    collectives = collectives or Collectives()
    model, named, teacher = student(seed, dtype=dtype, learn_sigma=learn_sigma, family=family)
    line = METHODS[method]
    own = method_settings(method, SMALL.get(method, {}) if settings is None else settings)
    given = preparation(own, seed, dtype=dtype, learn_sigma=learn_sigma, family=family)
    memory = line.prepare(given) if line.prepare else Memory()
    mine = share(own_rows(method, rows, given, memory), collectives.rank, collectives.world_size)
    tools = Tools(model=model, teacher=teacher, settings=own, named=named, memory=memory.vectors)
    terms = build_terms(
        model,
        mine,
        weights or Weights(),
        teacher=teacher,
        micro_batches=micro_batches,
        joint=joint,
        own=own_losses(method, tools),
        penalties=own_penalties(method, tools),
    )
    local = LocalGradients(params=list(named.values()), terms=terms, hvp=hvp, fd_radius=fd_radius)
    gradients = Gradients(
        index=index, local=local, collectives=collectives, progress=0.25, memory=memory.vectors
    )
    return line.gradient(gradients, own)


def naive_losses(model: Transformer, rows: StepRows, exchange_weight: float = 1.0) -> dict[str, Tensor]:
    """L_f and L_r + w L_x of the whole batch, one forward a term."""

    def loss(part: Any) -> Tensor:
        return model.losses(model.net, part.x0, part.y, part.noise).mean()

    keep = loss(rows.retain) + (exchange_weight * loss(rows.exchange) if rows.exchange else 0.0)
    return {"forget": loss(rows.forget), "keep": keep}


def naive_gradients(seed: int, rows: StepRows, **options: Any) -> tuple[Tensor, Tensor]:
    """(g_f, g_r), each (P,), of the whole batch."""
    model, named, _ = student(seed, **options)
    params = list(named.values())
    losses = naive_losses(model, rows)
    g_f, g_r = (flat(torch.autograd.grad(losses[name], params), params) for name in ("forget", "keep"))
    return g_f, g_r


def naive_uno(seed: int, rows: StepRows, penalty: float = PENALTY, **options: Any) -> Tensor:
    """grad (L_r + L_x + lambda cos^2(g_f, g_r)), all of it differentiated twice in one graph."""
    model, named, _ = student(seed, **options)
    params = list(named.values())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        losses = naive_losses(model, rows)
        g_f, g_r = (
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(losses[name], params, create_graph=True)])
            for name in ("forget", "keep")
        )
        cos2 = (g_f @ g_r) ** 2 / ((g_f @ g_f) * (g_r @ g_r))
        return flat(torch.autograd.grad(losses["keep"] + penalty * cos2, params), params)


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return (a @ b / (a.norm() * b.norm())).item()


# What a world of ranks computes, by name; functions at module level so that spawned processes find them.


def on_every_rank(work: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """`take_step` on this rank's share for every entry of `work` (its arguments by name)."""
    collectives = Collectives()
    return {
        name: take_step(
            **arguments,
            rows=tiny_step_rows(family=arguments.get("family", "dit")),
            collectives=collectives,
        )
        for name, arguments in work.items()
    }


def run_all(functions: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]]) -> dict[str, Any]:
    """Several functions in one world: starting processes costs more than what they do."""
    return {name: function(*arguments) for name, (function, arguments) in functions.items()}
