"""What a step costs beside plain fine-tuning and beside the published step, in paired process CPU time and
memory.

Lower bounds count matrix products in units of FT(B), plain fine-tuning on B images (a forward is 1/3 of it, a
backward 2/3): surgery 2B + B = 3; UNO exact adds one more forward-and-backward's worth of double backward on
3B = 6; recomputed 9; central differences four more first-order passes over 1.5B on average = 9; UNO-S, every
second step surgery, (6 + 3) / 2 = 4.5.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.diffusion import Noise
from models.generative import DiTModel, GenerativeModel, dit_description
from pipeline.benchmarks import naive_step, redirection_step
from pipeline.benchmarks.measure import paired_cpu_seconds, peak_bytes, ratio, relative_error
from pipeline.config import BenchmarkConfig
from pipeline.errors import InputError
from pipeline.seeding import generator
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.gradients import Gradients, LocalGradients
from pipeline.unlearning.losses import Weights, build_terms
from pipeline.unlearning.methods.table import METHODS, method_settings
from pipeline.unlearning.noising import Rows, StepRows
from pipeline.unlearning.parameters import select
from pipeline.unlearning.penalty import penalty_directions

BOUNDS = {
    "surgery_over_finetune": 3.0,
    "uno_exact_over_finetune": 6.0,
    "uno_recompute_over_finetune": 9.0,
    "uno_fd_central_over_finetune": 9.0,
    "uno_fd_forward_over_finetune": 6.0,
    "uno_s_over_finetune": 4.5,
    "uno_exact_over_surgery": 2.0,
}


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """The table as one JSON value: medians of paired, interleaved rounds, with the bounds beside them."""
    torch.set_num_threads(config.threads)
    settings = config.step
    model = model_of(settings.width, settings.depth, settings.tokens, config.seed)
    params = list(chosen(model, settings.trainable, "step").values())
    rows = rows_of(model, settings.batch, config.seed)

    def step(method: str, hvp: str = "exact", micro_batches: int = 1) -> Callable[[], Tensor]:
        def once() -> Tensor:
            terms = build_terms(
                model, rows, Weights(), teacher=None, micro_batches=micro_batches, joint=hvp != "recompute"
            )
            local = LocalGradients(params=params, terms=terms, hvp=hvp)
            gradients = Gradients(index=1, local=local, collectives=Collectives())
            own = {"penalty": settings.penalty} if METHODS[method].second_order else {}
            return METHODS[method].gradient(gradients, method_settings(method, own))

        return once

    variants: dict[str, Callable[[], Any]] = {
        "finetune": step("finetune"),
        "surgery": step("surgery"),
        "uno_exact": step("uno"),
        "uno_recompute": step("uno", "recompute", settings.batch),
        "uno_fd_central": step("uno", "fd_central"),
        "uno_fd_forward": step("uno", "fd_forward"),
        "naive_surgery": lambda: naive_step.surgery(model, params, rows),
        "naive_uno": lambda: naive_step.uno(model, params, rows, settings.penalty),
    }
    deep, deep_bound = redirection_step.variants(
        model_of(settings.width, settings.depth, settings.tokens, config.seed), settings, config.seed
    )
    seconds = paired_cpu_seconds({**variants, **deep}, repeats=settings.repeats)
    seconds["uno_s"] = [(a + b) / 2 for a, b in zip(seconds["uno_exact"], seconds["surgery"], strict=True)]
    seconds["naive_uno_s"] = [
        (a + b) / 2 for a, b in zip(seconds["naive_uno"], seconds["naive_surgery"], strict=True)
    ]
    figures = {
        f"{name}_over_finetune": ratio(seconds, name, "finetune")
        for name in (
            "surgery",
            "uno_exact",
            "uno_recompute",
            "uno_fd_central",
            "uno_fd_forward",
            "uno_s",
            "naive_surgery",
            "naive_uno",
            "naive_uno_s",
        )
    }
    figures["uno_s_over_naive"] = ratio(seconds, "uno_s", "naive_uno_s")
    figures["uno_exact_over_surgery"] = ratio(seconds, "uno_exact", "surgery")
    figures["depth_weights_over_finetune"] = ratio(seconds, "depth_weights", "finetune_all")

    naive_bytes = peak_bytes(variants["naive_uno"])
    for name in ("uno_exact", "uno_recompute", "uno_fd_central", "surgery"):
        figures[f"{name.removeprefix('uno_')}_memory_over_naive"] = peak_bytes(variants[name]) / naive_bytes

    figures |= _errors(model, params, rows, settings.batch)
    return {
        "benchmark": "step",
        **{name: round(value, 8 if name.endswith("error") else 4) for name, value in figures.items()},
        "lower_bounds": BOUNDS | deep_bound,
        "finetune_cpu_seconds": round(sorted(seconds["finetune"])[len(seconds["finetune"]) // 2], 4),
        "setting": (
            settings.model_dump()
            | {
                "threads": config.threads,
                "trainable_parameters": sum(p.numel() for p in params),
            }
        ),
    }


def _errors(model: DiTModel, params: Sequence[Tensor], rows: StepRows, batch: int) -> dict[str, float]:
    """Relative error of H_f u + H_r v, the part in which the modes differ, against the
    exact one in float32."""
    products = {}
    for name, hvp, micro_batches in (
        ("exact", "exact", 1),
        ("recompute", "recompute", batch),
        ("fd_central",) * 2 + (1,),
        ("fd_forward",) * 2 + (1,),
    ):
        terms = build_terms(
            model, rows, Weights(), teacher=None, micro_batches=micro_batches, joint=hvp != "recompute"
        )
        local = LocalGradients(params=params, terms=terms, hvp=hvp)
        gradients = Gradients(index=1, local=local, collectives=Collectives())
        g_f, g_r = gradients.of("forget", "keep", twice=True)
        u, v, _ = penalty_directions(g_f, g_r)
        products[name] = gradients.second_order_product({"forget": u, "keep": v})
    return {
        f"{name}_error": relative_error(value, products["exact"])
        for name, value in products.items()
        if name != "exact"
    }


def chosen(model: GenerativeModel, trainable: str, benchmark: str) -> dict[str, nn.Parameter]:
    """Subset `trainable`; raises `InputError` where the network that `benchmark` makes has no such one."""
    try:
        return select(model, trainable)
    except ValueError as error:
        raise InputError(f"{benchmark}.{error}") from error


def model_of(width: int, depth: int, tokens: int, seed: int) -> DiTModel:
    side = int(tokens**0.5) * 2
    description = dit_description(
        "DiT-S/2", shape=(4, side, side), num_classes=1000, class_names=[], latent=True
    )
    description["architecture"] |= {"width": width, "depth": depth, "input_size": side}
    model = DiTModel(description)
    g = generator(seed, "benchmark")
    # the published start has zeroed layers, through which nothing flows
    for parameter in model.net.parameters():
        parameter.data.normal_(0, 0.02, generator=g)
    return model


def rows_of(model: DiTModel, batch: int, seed: int) -> StepRows:
    g = generator(seed, "benchmark rows")

    def rows(label: int) -> Rows:
        y = torch.full((batch,), label)
        noise = Noise(
            t=torch.randint(1000, (batch,), generator=g), eps=torch.randn(batch, *model.shape, generator=g)
        )
        return Rows(x0=torch.randn(batch, *model.shape, generator=g), y=y, target_y=y, noise=noise)

    return StepRows(retain=rows(208), forget=rows(207), exchange=rows(207))
