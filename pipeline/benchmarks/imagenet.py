"""The real step and the real sampler of a published size with random weights: seconds, memory, and the memory
plan held against it.

On a GPU at DiT-XL/2; without one the same at DiT-S/2, and the result names what was not measured. A step is
`training.loop.train_step` as a run takes it, from rows in memory to the moved weights; the naive one is the
published step.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from models.compiling import compile_first_order, uncompiled
from models.generative import DiTModel, dit_description
from models.judge import build_judge, small_cnn_description
from pipeline.benchmarks import naive_step
from pipeline.benchmarks.measure import peak_of, seconds_of
from pipeline.config import BenchmarkConfig, UnlearnConfig, parse
from pipeline.config.benchmark import ImageNetScale
from pipeline.data.batch import Batch
from pipeline.data.cycle import Cycle
from pipeline.evaluation.measure import Subject
from pipeline.runs.memory_plan import GIB, USABLE, MemoryPlan
from pipeline.runtime.precision import autocast, require_precision, use_tf32
from pipeline.seeding import generator
from pipeline.training.loop import Inputs, train_step
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.methods.table import METHODS
from pipeline.unlearning.noising import step_rows
from pipeline.unlearning.optimizer import Average, adamw, apply_gradient
from pipeline.unlearning.parameters import flat, select

FORGET, EXCHANGE, RETAIN = 207, 208, 205
STEPS = {  # name -> method and hvp
    "finetune": ("finetune", "exact"),
    "surgery": ("surgery", "exact"),
    "uno_exact": ("uno", "exact"),
    "uno_recompute": ("uno", "recompute"),
    "uno_fd_central": ("uno", "fd_central"),
    "uno_fd_forward": ("uno", "fd_forward"),  # in fp32 alone
}
NAIVE = {"naive_uno": "uno_exact", "naive_surgery": "surgery"}
ALWAYS_LEFT = [
    "the published weights, and with them any forgetting on ImageNet",
    "the decoder and the judge, which a check needs beside the sampler",
    "several GPUs",
]


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Rows of one step each, by batch; the sampler; what was not measured."""
    torch.set_num_threads(config.threads)
    use_tf32(False)
    wanted = config.imagenet
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scale = wanted.gpu if device.type == "cuda" else wanted.cpu
    left = list(ALWAYS_LEFT)
    if device.type != "cuda":
        batches = " / ".join(map(str, wanted.gpu.batches))
        left.insert(
            0,
            f"{wanted.gpu.size} on a GPU: its step and peak memory at batch {batches},"
            f" {wanted.gpu.precision}, its sampler",
        )
    model = model_of(scale.size, config.seed, device)
    rows = [
        row
        for batch in scale.batches
        for row in steps_of(model, scale, batch, wanted.trainable, wanted.penalty, config.seed)
    ]
    return {
        "benchmark": "imagenet",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": config.threads,
        "seconds_are": "wall, synchronised" if device.type == "cuda" else "process CPU time",
        "trainable": wanted.trainable,
        "scale": scale.model_dump(mode="json"),
        "steps": rows,
        "sampler": sampler_of(model, scale, device),
        "not_measured": left,
    }


def model_of(size: str, seed: int, device: torch.device) -> DiTModel:
    """A DiT for latents with random numbers in every parameter: untrained adaLN-Zero would
    let nothing flow."""
    description = dit_description(
        size, shape=_shape(size), num_classes=1000, class_names=[""] * 1000, latent=True
    )
    model, g = DiTModel(description), generator(seed, "benchmark")
    for parameter in model.net.parameters():
        parameter.data.normal_(0, 0.02, generator=g)
    model.net.to(device).train()
    return model


def steps_of(
    model: DiTModel, scale: ImageNetScale, batch: int, trainable: str, penalty: float, seed: int
) -> list[dict[str, Any]]:
    """Every kind of step at one batch, in turn, so that a machine whose speed drifts slows
    all of them alike."""
    device = next(model.net.parameters()).device
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    configs: dict[str, UnlearnConfig] = {}
    plans: dict[str, MemoryPlan] = {}
    for name, (method, hvp) in STEPS.items():
        if hvp == "fd_forward" and scale.precision != "fp32":
            continue
        configs[name] = config_of(model, scale, batch, trainable, penalty, method, hvp)
        plans[name] = MemoryPlan(configs[name], model.config)
    if "uno_recompute" in configs:
        configs["uno_recompute"] = _in_pieces(configs["uno_recompute"], plans["uno_recompute"], total)
    require_precision(device, configs["finetune"])
    bench = _Steps(model, configs["finetune"], seed)
    variants = {name: bench.step(config) for name, config in configs.items()}
    variants |= {name: bench.naive(configs[like], METHODS_OF_NAIVE[name]) for name, like in NAIVE.items()}
    if scale.compile:
        compile_first_order(model.net)
        variants["surgery_compiled"] = bench.step(configs["surgery"], compiled=True)
    peaks: dict[str, int] = {}
    seconds: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for name, once in variants.items():
        if total and name in plans and plans[name].need(*_how(configs[name])).total > total:
            failed[name] = "planned to need more than the device has: not tried"
            continue
        try:
            once()  # warm: moments, caches, compiled code
            peaks[name] = peak_of(once, device)
            seconds[name] = []
        except torch.OutOfMemoryError as error:
            failed[name] = f"out of memory: {str(error).partition('.')[0]}"
    for _ in range(scale.repeats):
        for name in seconds:
            seconds[name].append(seconds_of(variants[name], device))
    model.net._compiled_call_impl = None
    if "uno_exact" in seconds and "surgery" in seconds:
        seconds["uno_s"] = [
            (a + b) / 2 for a, b in zip(seconds["uno_exact"], seconds["surgery"], strict=True)
        ]
    if NAIVE.keys() <= seconds.keys():
        seconds["naive_uno_s"] = [
            (a + b) / 2 for a, b in zip(seconds["naive_uno"], seconds["naive_surgery"], strict=True)
        ]
    found = [
        {
            "batch": batch,
            "step": name,
            **_figures(name, seconds),
            **_memory(name, peaks, plans, configs, device),
        }
        for name in seconds
    ]
    return found + [{"batch": batch, "step": name, "failed": why} for name, why in failed.items()]


def config_of(
    model: DiTModel, scale: ImageNetScale, batch: int, trainable: str, penalty: float, method: str, hvp: str
) -> UnlearnConfig:
    return parse(
        UnlearnConfig,
        {
            "model": {"size": scale.size},
            "request": {"id": "benchmark", "classes": [FORGET], "exchange": {FORGET: EXCHANGE}},
            "method": {
                "name": method,
                "hvp": hvp,
                "penalty": penalty,
                "targets": "data",
                "exchange_weight": 1.0,
            },
            "trainable": trainable,
            "partition": {"lanes": 1},
            "optim": {"batch_size": batch, "lr": 1e-6, "clip": None},
            "train": {"workers": 1, "precision": scale.precision},
        },
    )


def sampler_of(model: DiTModel, scale: ImageNetScale, device: torch.device) -> dict[str, Any]:
    """Images a second with classifier-free guidance, and compiled, with the seconds that compiling took."""
    labels, seeds = torch.arange(scale.sampler_batch), list(range(scale.sampler_batch))
    model.net.eval()

    @torch.no_grad()
    def once() -> None:
        with autocast(scale.precision, device):
            model.sample(labels=labels, seeds=seeds, cfg_scale=4.0, steps=scale.sampler_steps)

    def images_a_second() -> float:
        once()
        return scale.sampler_batch / statistics.median(seconds_of(once, device) for _ in range(scale.repeats))

    found: dict[str, Any] = {
        "batch": scale.sampler_batch,
        "steps": scale.sampler_steps,
        "cfg_scale": 4.0,
        "precision": scale.precision,
    }
    found["images_a_second"] = _rounded(images_a_second())
    if scale.compile:
        compile_first_order(model.net)
        found["compile_seconds"] = _rounded(seconds_of(once, device))
        found["compiled_images_a_second"] = _rounded(images_a_second())
        model.net._compiled_call_impl = None
    return found


class _Steps:
    """What the steps of one batch share: weights, optimiser, average, rows."""

    def __init__(self, model: DiTModel, config: UnlearnConfig, seed: int):
        self._model, self._device = model, next(model.net.parameters()).device
        self._named = select(model, config.trainable)
        self._optimiser = adamw(list(self._named.values()), lr=config.optim.lr, weight_decay=0.0)
        self._average = Average(self._named, 0.7)
        batch = config.optim.batch_size
        self._retain, forget, exchange = (_rows(model, label, asked, batch, seed) for label, asked in _KINDS)
        self._forget, self._exchange = Cycle(forget, seed, "forget"), Cycle(exchange, seed, "exchange")

    def step(self, config: UnlearnConfig, *, compiled: bool = False) -> Callable[[], Any]:
        """A step as a run takes it."""
        inputs = Inputs(
            config=config,
            model=self._model,
            subject=_nobody(),
            retain=lambda start: iter(()),
            forget=self._forget,
            exchange=self._exchange,
            collectives=Collectives(),
            device=self._device,
        )
        method = METHODS[config.method.name]

        def once() -> None:
            with ExitStack() as stack:
                if not compiled:
                    stack.enter_context(uncompiled(self._model.net))
                train_step(
                    inputs,
                    self._retain,
                    1,
                    1,
                    method=method,
                    named=self._named,
                    teacher=None,
                    optimiser=self._optimiser,
                )
                self._average.update(self._named)

        return once

    def naive(self, config: UnlearnConfig, gradient: Callable[..., Any]) -> Callable[[], Any]:
        """The published step on the same rows, with the same optimiser."""
        params, batch = list(self._named.values()), config.optim.batch_size

        def once() -> None:
            place = (0, batch, 1, 0, 1)
            rows = step_rows(
                self._model,
                self._retain,
                self._forget.take(*place),
                self._exchange.take(*place),
                seed=config.seed,
                step=1,
                device=self._device,
                null_fraction=0.0,
                exchange_classes=config.request.exchange_classes,
                share_noise=False,
            )
            with uncompiled(self._model.net), autocast(config.train.precision, self._device):
                found = gradient(self._model, params, rows, config.method.own["penalty"])
            vector = flat(found, params) if isinstance(found, list) else found
            apply_gradient(self._optimiser, params, vector, lr=config.optim.lr, clip=None)

        return once


METHODS_OF_NAIVE: Mapping[str, Callable[..., Any]] = {
    "naive_uno": naive_step.uno,
    "naive_surgery": lambda model, params, rows, penalty: naive_step.surgery(model, params, rows),
}
# class of the rows, label they are asked under
_KINDS = ((RETAIN, RETAIN), (FORGET, FORGET), (EXCHANGE, FORGET))


def _rows(model: DiTModel, label: int, asked: int, n: int, seed: int) -> Batch:
    g = generator(seed, "benchmark rows", label)
    mean = torch.randn(n, *model.shape, generator=g)
    names = tuple(f"{label}-{index}" for index in range(n))
    return Batch(
        sample_id=names, draw=(0,) * n, y=torch.full((n,), asked), mean=mean, std=torch.full_like(mean, 0.1)
    )


def _nobody() -> Subject:
    """A step asks no judge; the loop's inputs name one all the same."""
    judge = build_judge(small_cnn_description(shape=(3, 8, 8), num_classes=2, class_names=["", ""]))
    return Subject(
        judge=judge, forgotten=(FORGET,), exchange={FORGET: (EXCHANGE,)}, retained=(RETAIN,), neighbours=()
    )


def _shape(size: str) -> tuple[int, int, int]:
    from models.dit import dit_config

    config = dit_config(size)
    return config.channels, config.input_size, config.input_size


def _in_pieces(config: UnlearnConfig, plan: MemoryPlan, total: int | None) -> UnlearnConfig:
    """`config` with the largest micro-batch that fits the device; half the batch on a CPU, where what it
    saves is to be seen."""
    batch = config.optim.batch_size
    sizes = [size for size in range(batch, 0, -1) if batch % size == 0]
    if total is None:
        size = sizes[min(1, len(sizes) - 1)]
    else:
        size = next((size for size in sizes if plan.need("recompute", size).total <= USABLE * total), 1)
    return config.model_copy(update={"optim": config.optim.model_copy(update={"micro_batch": size})})


def _how(config: UnlearnConfig) -> tuple[str, int | None]:
    return config.method.hvp, config.optim.micro_batch


def _figures(name: str, seconds: Mapping[str, list[float]]) -> dict[str, float]:
    def over(other: str) -> dict[str, float]:
        pairs: Iterable[tuple[float, float]] = zip(seconds[name], seconds.get(other, []), strict=False)
        ratios = [a / b for a, b in pairs]
        return {f"over_{other}": _rounded(statistics.median(ratios))} if ratios and name != other else {}

    naive = f"naive_{'uno_s' if name == 'uno_s' else 'surgery' if 'surgery' in name else 'uno'}"
    return {
        "seconds": _rounded(statistics.median(seconds[name])),
        **over("finetune"),
        **(over(naive) if "naive" not in name else {}),
    }


def _memory(
    name: str,
    peaks: Mapping[str, int],
    plans: Mapping[str, MemoryPlan],
    configs: Mapping[str, UnlearnConfig],
    device: torch.device,
) -> dict[str, Any]:
    if name not in peaks:
        return {}
    found: dict[str, Any] = {"peak_gib": _rounded(peaks[name] / GIB)}
    if name in plans:
        need = plans[name].need(*_how(configs[name]))
        planned = need.total if device.type == "cuda" else need.gradients + need.activations
        found |= {
            "planned_gib": _rounded(planned / GIB),
            "planned_over_peak": _rounded(planned / peaks[name]),
        }
        if configs[name].optim.micro_batch:
            found["micro_batch"] = configs[name].optim.micro_batch
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
