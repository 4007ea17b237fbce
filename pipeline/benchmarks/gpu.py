"""What a card does: whole steps of each kind at real batches against the published step, peak memory against
the plan, host reads, the sampler, and torch.compile. On a CPU the same in small, in process CPU seconds.

A step is its gradient, the one read of the host, and AdamW at rate 0, on data targets as published; `teacher`
marks the targets of the main job.
"""

import gc
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from models.compiling import compile_first_order
from models.diffusion import Noise
from models.generative import DiTModel, build, dit_description
from pipeline.benchmarks import naive_step, redirection_step
from pipeline.benchmarks.host_reads import HostReads, host_side
from pipeline.benchmarks.measure import peak_bytes
from pipeline.benchmarks.step import chosen
from pipeline.config import BenchmarkConfig, UnlearnConfig, parse
from pipeline.config.benchmark import GpuBenchmark, StepBenchmark
from pipeline.runs.memory_plan import MemoryPlan
from pipeline.runtime.precision import autocast
from pipeline.seeding import generator
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.gradients import FD_RADIUS, Gradients, LocalGradients
from pipeline.unlearning.losses import Weights, build_terms
from pipeline.unlearning.methods.table import METHODS, method_settings
from pipeline.unlearning.noising import Rows, StepRows
from pipeline.unlearning.optimizer import adamw, apply_gradient
from pipeline.unlearning.parameters import flat, select
from pipeline.unlearning.teacher import Teacher

MIB = 2**20
# kind: method, how its second-order product is made, what L_r and L_x are measured against
KINDS = {
    "finetune": ("finetune", "exact", "data"),
    "exchange": ("exchange", "exact", "data"),
    "surgery": ("surgery", "exact", "data"),
    "surgery, teacher": ("surgery", "exact", "teacher"),
    "uno exact": ("uno", "exact", "data"),
    "uno exact, teacher": ("uno", "exact", "teacher"),
    "uno recompute": ("uno", "recompute", "data"),
    "uno fd_central": ("uno", "fd_central", "data"),
}
COMPILED = ("finetune", "surgery", "uno fd_central")  # whose passes are of first order


@dataclass(kw_only=True)
class Bench:
    """A model on its device, and the steps that are taken with it."""

    settings: GpuBenchmark
    model: DiTModel
    device: torch.device
    seed: int

    def __post_init__(self) -> None:
        self.named = chosen(self.model, self.settings.trainable, "gpu")
        self.params = list(self.named.values())
        self.optimizer = adamw(self.params, lr=0.0, weight_decay=0.0)
        self.teacher = Teacher(self.model, self.named)
        self.started = time.monotonic()

    @property
    def time_left(self) -> bool:
        return time.monotonic() - self.started < self.settings.budget_s

    def clock(self) -> float:
        """Seconds that a step is charged: of the device, or of this process's CPU time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def rows(self, batch: int) -> StepRows:
        g = generator(self.seed, "benchmark rows")

        def of(label: int, shown: int) -> Rows:
            x0, eps = (torch.randn(batch, *self.model.shape, generator=g).to(self.device) for _ in range(2))
            y, target = (torch.full((batch,), c, device=self.device) for c in (label, shown))
            t = torch.randint(1000, (batch,), generator=g).to(self.device)
            return Rows(x0=x0, y=y, target_y=target, noise=Noise(t=t, eps=eps))

        return StepRows(retain=of(208, 208), forget=of(207, 207), exchange=of(207, 208))

    def step(self, kind: str, rows: StepRows) -> Callable[[], None]:
        method, hvp, targets = KINDS[kind]
        own = {"penalty": self.settings.penalty} if METHODS[method].second_order else {}
        micro = len(rows) if hvp == "recompute" else 1

        def once() -> None:
            terms = build_terms(
                self.model,
                rows,
                Weights(targets=targets),
                teacher=self.teacher,
                micro_batches=micro,
                joint=hvp != "recompute",
                autocast=lambda: autocast(self.settings.precision, self.device),
            )
            radius = FD_RADIUS[self.settings.precision]
            local = LocalGradients(params=self.params, terms=terms, hvp=hvp, fd_radius=radius)
            gradients = Gradients(index=1, local=local, collectives=Collectives())
            gradient = METHODS[method].gradient(gradients, method_settings(method, own))
            self._move(gradient, gradients.quantities, gradients.mean_losses())

        return once

    def published(self, kind: str, rows: StepRows) -> Callable[[], None]:
        """The authors' step on the same rows."""

        def once() -> None:
            with autocast(self.settings.precision, self.device):
                if kind == "naive uno":
                    parts = naive_step.uno(self.model, self.params, rows, self.settings.penalty)
                    gradient = flat(parts, self.params)
                else:
                    gradient = naive_step.surgery(self.model, self.params, rows).float()
            self._move(gradient, {}, {})

        return once

    def _move(
        self, gradient: torch.Tensor, quantities: Mapping[str, torch.Tensor], figures: Mapping[str, Any]
    ) -> None:
        norm = gradient.norm()
        read = Collectives().require_finite({**quantities, "gradient": norm}, 1, {**figures, "norm": norm})
        apply_gradient(self.optimizer, self.params, gradient, lr=0.0, clip=1.0, norm=read["norm"])

    def seconds(self, variants: Mapping[str, Callable[[], None]]) -> dict[str, float | str]:
        """The median of each, in turn; in words where there is no memory or no time for it."""
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        words: dict[str, str] = {}
        for turn in range(1 + self.settings.repeats):
            for name, once in variants.items():
                if name in words or not self.time_left:
                    continue
                gc.collect()
                started = self.clock()
                try:
                    once()
                except torch.OutOfMemoryError:
                    words[name] = "out of memory"
                    torch.cuda.empty_cache()
                    continue
                if turn:  # the first warms up
                    seconds[name].append(self.clock() - started)
        return {
            name: words.get(name) or (round(median(own), 4) if own else "no time left")
            for name, own in seconds.items()
        }

    def peak(self, once: Callable[[], None]) -> int | str:
        """Bytes above what lay there before."""
        if self.device.type != "cuda":
            return peak_bytes(once)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        try:
            once()
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return "out of memory"
        return torch.cuda.max_memory_allocated() - before


def run(config: BenchmarkConfig) -> dict[str, Any]:
    torch.set_num_threads(config.threads)
    settings = config.gpu
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    side = settings.side
    described = dit_description(
        settings.size,
        shape=(4, side, side),
        num_classes=1000,
        class_names=[],
        latent=True,
        learn_sigma=settings.learn_sigma,
    )
    model = _model(described, device, config.seed)
    bench = Bench(settings=settings, model=model, device=device, seed=config.seed)
    result: dict[str, Any] = {
        "benchmark": "gpu",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu, process CPU seconds",
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "trainable_parameters": sum(p.numel() for p in bench.params),
        "by_batch": {str(batch): _at(bench, batch, described) for batch in settings.batches},
        "depth_weights": _depth_weights(bench, config.seed),
        "sampler": _sampler(bench),
    }
    if settings.compile:
        compile_first_order(model.net)
        rows = bench.rows(settings.batches[0])
        result["compiled"] = bench.seconds({kind: bench.step(kind, rows) for kind in COMPILED})
    return result | {
        "seconds_in_all": round(time.monotonic() - bench.started, 1),
        "setting": settings.model_dump(),
    }


def _model(described: dict[str, Any], device: torch.device, seed: int) -> DiTModel:
    """All weights from N(0, 0.02): the published start has zeroed layers, through which nothing flows."""
    with torch.device(device):
        model = build(described)
    assert isinstance(model, DiTModel)
    g = torch.Generator(device).manual_seed(seed)
    for parameter in model.net.parameters():
        parameter.data.normal_(0, 0.02, generator=g)
    return model


def _at(bench: Bench, batch: int, described: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds, ratios, peaks and reads at one batch."""
    rows = bench.rows(batch)
    variants = {kind: bench.step(kind, rows) for kind in KINDS}
    variants |= {kind: bench.published(kind, rows) for kind in ("naive surgery", "naive uno")}
    seconds = bench.seconds(variants)

    def over(a: str, b: str) -> float | None:
        x, y = seconds[a], seconds[b]
        return round(x / y, 3) if isinstance(x, float) and isinstance(y, float) and y else None

    memory: dict[str, Any] = {}
    for kind in ("surgery", "uno exact", "uno recompute", "uno fd_central", "naive uno"):
        measured = bench.peak(variants[kind]) if bench.time_left else "no time left"
        memory[kind] = {"measured_mib": round(measured / MIB) if isinstance(measured, int) else measured}
        if kind in KINDS:
            planned = _planned(bench.settings, batch, kind, described)
            memory[kind]["planned_mib"] = round(planned / MIB)
            if isinstance(measured, int):
                memory[kind]["planned_over_measured"] = round(planned / measured, 3)
    return {
        "seconds_a_step": seconds,
        "uno_s_seconds": _mean(seconds["uno exact"], seconds["surgery"]),
        "naive_uno_s_seconds": _mean(seconds["naive uno"], seconds["naive surgery"]),
        "surgery_over_finetune": over("surgery", "finetune"),
        "uno_exact_over_finetune": over("uno exact", "finetune"),
        "uno_exact_over_naive": over("uno exact", "naive uno"),
        "surgery_over_naive": over("surgery", "naive surgery"),
        "peak_above_weights": memory,
        "host_reads_a_step": _reads(bench, variants),
    }


def _mean(a: float | str, b: float | str) -> float | None:
    return round((a + b) / 2, 4) if isinstance(a, float) and isinstance(b, float) else None


def _planned(settings: GpuBenchmark, batch: int, kind: str, described: Mapping[str, Any]) -> int:
    """Bytes above the weights by the plan that the main job prints."""
    method, hvp, targets = KINDS[kind]
    config = parse(
        UnlearnConfig,
        {
            "model": {"size": settings.size},
            "request": {"classes": [207], "exchange": {207: 208}},
            "method": {"name": method, "targets": targets},
            "trainable": settings.trainable,
            "partition": {"lanes": 1},
            "optim": {"batch_size": batch},
            "train": {"workers": 1, "precision": settings.precision},
        },
    )
    need = MemoryPlan(config, described).need(hvp, 1 if hvp == "recompute" else None)
    return need.gradients + need.activations


def _reads(bench: Bench, variants: Mapping[str, Callable[[], None]]) -> dict[str, Any]:
    """By kind: calls that read numbers, and what CUDA itself says of waits."""
    counts: dict[str, Any] = {}
    for kind in ("surgery", "uno exact", "uno fd_central", "naive uno"):
        if not bench.time_left:
            return counts
        with (
            HostReads(aside=host_side(bench.optimizer)) as reads,
            warnings.catch_warnings(record=True) as waits,
        ):
            warnings.simplefilter("always")
            cuda = bench.device.type == "cuda"
            if cuda:
                torch.cuda.set_sync_debug_mode("warn")
            try:
                variants[kind]()
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                continue
            finally:
                if cuda:
                    torch.cuda.set_sync_debug_mode("default")
        counts[kind] = {"reads": reads.total}
        if cuda:
            counts[kind]["cuda_waits"] = sum("synchronizing" in str(one.message) for one in waits)
    return counts


def _depth_weights(bench: Bench, seed: int) -> dict[str, Any]:
    """A step of depth weights, all parameters trained, beside fine-tuning of the same."""
    settings = bench.settings
    variants, bound = redirection_step.variants(
        bench.model,
        StepBenchmark(),
        seed,
        device=bench.device,
        precision=settings.precision,
    )
    seconds = bench.seconds(variants)
    select(bench.model, settings.trainable)
    a, b = seconds["depth_weights"], seconds["finetune_all"]
    ratio = round(a / b, 3) if isinstance(a, float) and isinstance(b, float) and b else None
    return {"seconds_a_step": seconds, "depth_weights_over_finetune": ratio, "lower_bound": bound}


def _sampler(bench: Bench) -> dict[str, Any]:
    """Images a second with guidance, network and process alone."""
    settings, model = bench.settings, bench.model
    labels = torch.full((settings.sampler_images,), 207)

    @torch.no_grad()
    def once() -> None:
        with autocast(settings.precision, bench.device):
            seeds = list(range(settings.sampler_images))
            model.sample(labels=labels, seeds=seeds, cfg_scale=4.0, steps=settings.sampler_steps)

    seconds = bench.seconds({"sampler": once})["sampler"]
    rate = round(settings.sampler_images / seconds, 2) if isinstance(seconds, float) and seconds else None
    return {"images_a_second": rate, "seconds": seconds}
