"""What a run needs of a GPU, before there is one: the configured step is run on the meta device and its
tensors are counted.

Calibrated against the CPU allocator's own records by tests/test_memory_plan.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from models.diffusion import Noise
from models.generative import DiTModel, build
from pipeline.config import UnlearnConfig
from pipeline.runs.live_bytes import AsOnGpu, LiveBytes
from pipeline.training.elastic import micro_batches, usable_world
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.gradients import Step
from pipeline.unlearning.losses import Rows, StepRows, Teacher, Weights, build_terms
from pipeline.unlearning.methods.interim import method_settings
from pipeline.unlearning.methods.table import METHODS
from pipeline.unlearning.parameters import select

MODES = ("exact", "recompute", "fd_central", "fd_forward")
GIB = 2**30
# share of the memory that tensors may take: the rest is the allocator's gaps, the CUDA context and the
# libraries' workspaces
USABLE = 0.9
SHALLOW = 1  # blocks of the smallest model that is run
FLOAT = 4  # bytes: weights, gradients and moments are float32 whatever the precision of the step

Call = tuple[str, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes on one device at the step's peak. `weights`: the model, the frozen copy and the average of the
    trained subset."""

    weights: int
    gradients: int
    optimiser: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimiser + self.activations


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How the penalty's gradient is made, on how many rows at once, and why: one line."""

    hvp: str
    micro_batch: int | None
    why: str
    fits: bool = True


class MemoryPlan:
    """The needs of `config` on a DiT of `description` (a config.json); nothing is computed before it is asked
    for."""

    def __init__(self, config: UnlearnConfig, description: Mapping[str, Any]) -> None:
        self.config, self.description = config, description
        self.model = on_meta(description)
        self.parameters = sum(p.numel() for p in self.model.net.parameters())
        self.trainable = sum(p.numel() for p in select(self.model, config.trainable).values())
        self.rows = config.optim.batch_size // usable_world(config.partition.lanes, config.train.most)
        self._needs: dict[tuple[str, int | None], Need] = {}

    @cached_property
    def phases(self) -> list[list[Call]]:
        """What the method asks for in each step of its period, found by asking it on vectors of a few
        numbers."""
        settings = self.config.method
        options, _ = method_settings(settings.name, settings.own)
        period = max(2, getattr(options, "surgery_every", 2))
        found = []
        for index in range(1, period + 1):
            probe = _Probe(index=index, params=[], terms={}, collectives=Collectives())
            METHODS[settings.name](probe, options)
            found.append(probe.calls)
        return found

    @property
    def second_order(self) -> bool:
        return any(name == "second_order_product" for calls in self.phases for name, _, _ in calls)

    @property
    def reduced(self) -> float:
        """Elements averaged over the workers in a step: the mean over the method's period."""
        return self.trainable * sum(map(_vectors, self.phases)) / len(self.phases)

    def need(self, hvp: str, micro_batch: int | None = None) -> Need:
        """With `hvp` for the second-order product, on `micro_batch` rows of each kind at once (None: as
        configured)."""
        if (hvp, micro_batch) not in self._needs:
            size = FLOAT * self.trainable
            gradients = size * max(map(_vectors, self.phases))
            self._needs[hvp, micro_batch] = Need(
                weights=FLOAT * self.parameters + (2 if self._has_teacher else 1) * size,
                gradients=gradients,
                optimiser=2 * size,
                activations=max(0, self._peak(hvp, micro_batch) - gradients),
            )
        return self._needs[hvp, micro_batch]

    def _peak(self, hvp: str, micro_batch: int | None) -> int:
        """Peak bytes of a step above the weights. Blocks are alike: shallow models are run, a straight line
        is drawn through them."""
        heaviest = [
            calls for calls in self.phases if any(name == "second_order_product" for name, _, _ in calls)
        ] or self.phases

        def simulated(depth: int, trainable: str) -> int:
            shallow = on_meta(
                {**self.description, "architecture": {**self.description["architecture"], "depth": depth}}
            )
            return max(self._simulated(shallow, trainable, calls, hvp, micro_batch) for calls in heaviest)

        depth, (kind, _, count) = self.model.architecture.depth, self.config.trainable.partition(":")
        trained = int(count or 0)
        if depth <= SHALLOW + 1:
            return simulated(depth, self.config.trainable)
        if not trained:
            low, high = (simulated(blocks, kind) for blocks in (SHALLOW, SHALLOW + 1))
            return low + (high - low) * (depth - SHALLOW)
        low, frozen, both = (
            simulated(blocks, f"{kind}:{k}")
            for blocks, k in ((SHALLOW, 1), (SHALLOW + 1, 1), (SHALLOW + 1, 2))
        )
        return low + (frozen - low) * (depth - trained - SHALLOW + 1) + (both - low) * (trained - 1)

    def choose(self, memory_gib: float | None) -> Choice:
        """The configured mode where it fits; `exact` gives way to `recompute`, with smaller micro-batches if
        it has to be."""
        asked, micro = self.config.method.hvp, self.config.optim.micro_batch
        if not self.second_order:
            return Choice(
                hvp=asked,
                micro_batch=micro,
                why=f"{self.config.method.name} needs no second derivative: hvp plays no part",
            )
        if memory_gib is None:
            return Choice(hvp=asked, micro_batch=micro, why="as configured; no train.memory_gib to fit it to")
        budget = USABLE * memory_gib * GIB

        def line(hvp: str, need: Need) -> str:
            return f"{hvp} needs {need.total / GIB:.1f} of {budget / GIB:.1f} usable GiB (of {memory_gib:g})"

        first = self.need(asked)
        if first.total <= budget:
            return Choice(hvp=asked, micro_batch=micro, why=f"{line(asked, first)}: it fits")
        if asked != "exact":
            return Choice(
                hvp=asked,
                micro_batch=micro,
                fits=False,
                why=f"{line(asked, first)}: too much; lower optim.micro_batch",
            )
        held = self.rows // micro_batches(self.config, self.rows)
        sizes = [rows for rows in range(held, 0, -1) if self.rows % rows == 0]
        while sizes:  # halving rather than one by one: every try is a simulated step
            rows = sizes[0]
            need = self.need("recompute", rows)
            if need.total <= budget:
                return Choice(
                    hvp="recompute",
                    micro_batch=rows,
                    why=(
                        f"{line('exact', first)}: too much. {line('recompute', need)} with {rows} of"
                        f" {self.rows} rows at once"
                    ),
                )
            sizes = [smaller for smaller in sizes if smaller <= rows // 2]
        return Choice(
            hvp=asked,
            micro_batch=micro,
            fits=False,
            why=(
                f"{line('exact', first)}, recompute on one row {need.total / GIB:.1f}: too much; train fewer"
                " parameters"
            ),
        )

    def lines(self, memory_gib: float | None) -> list[str]:
        """The plan for people."""
        config = self.config
        said = [
            (
                f"memory plan: {self.description['size']}, {self.parameters:,} parameters"
                f" ({self.parameters / 1e6:.1f} M), {self.trainable:,} trainable ({self.trainable / 1e6:.1f}"
                f" M, {config.trainable})"
            ),
            (
                f"  {self.reduced / 1e6:.1f} M elements reduced a step ({config.method.name}), checkpoint of"
                f" the trained subset {FLOAT * self.trainable / 1e6:.0f} MB"
            ),
            (
                f"  {self.rows} rows of each kind on a worker, {config.train.precision}; GiB on one device at"
                " the step's peak:"
            ),
            f"  {'hvp':11}{'weights':>9}{'gradients':>11}{'optimiser':>11}{'activations':>13}{'total':>8}",
        ]
        for mode in MODES if self.second_order else MODES[:1]:
            need = self.need(mode)
            numbers = (need.weights, need.gradients, need.optimiser, need.activations, need.total)
            widths = (9, 11, 11, 13, 8)
            said.append(
                f"  {mode:11}"
                + "".join(f"{value / GIB:>{width}.2f}" for value, width in zip(numbers, widths, strict=True))
            )
        choice = self.choose(memory_gib)
        micro = f" with optim.micro_batch {choice.micro_batch}" if choice.micro_batch else ""
        said.append(f"  hvp {choice.hvp}{micro}: {choice.why}")
        return said

    @property
    def _has_teacher(self) -> bool:
        return self.config.method.targets == "teacher" or self.config.method.name == "esd"

    def _simulated(
        self, model: DiTModel, trainable: str, calls: list[Call], hvp: str, micro_batch: int | None
    ) -> int:
        """Peak bytes of one step of `model` that makes `calls`, above the weights that were
        there before it."""
        config, settings = self.config, self.config.method
        micro = self.rows // micro_batch if micro_batch else micro_batches(config, self.rows)
        if micro > 1 and hvp == "exact":
            hvp = "recompute"
        named = select(model, trainable)
        subject = _OnMeta(model)
        teacher = (
            Teacher(subject, {f"inner.{name}": p for name, p in named.items()}) if self._has_teacher else None
        )
        terms = build_terms(
            subject,
            self._rows(),
            Weights(exchange=settings.exchange_weight, targets=settings.targets, contrast=settings.contrast),
            teacher=teacher,
            micro_batches=micro,
            joint=hvp != "recompute",
            autocast=lambda: AsOnGpu(config.train.precision),
        )
        params = list(named.values())
        step = _MetaStep(index=1, params=params, terms=terms, collectives=Collectives(), hvp=hvp)
        flat = torch.empty(sum(p.numel() for p in params), device="meta")
        with LiveBytes([*model.net.parameters(), flat]) as live:
            held: list[Any] = []  # what the method holds on to
            for name, arguments, options in calls:
                if name == "second_order_product":
                    directions = {term: torch.empty_like(flat) for term in arguments[0]}
                    held = [held[-1][-1:], directions]  # g_f is let go, g_r is not
                    arguments = (directions,)
                held.append(getattr(step, name)(*arguments, **options))
        return live.peak

    def _rows(self) -> StepRows:
        shape = (self.rows, *self.model.shape)

        def rows() -> Rows:
            x0, y = torch.empty(shape, device="meta"), torch.zeros(self.rows, dtype=torch.long, device="meta")
            # t looks up tables on the CPU
            noise = Noise(t=torch.zeros(self.rows, dtype=torch.long), eps=torch.empty(shape, device="meta"))
            return Rows(x0=x0, y=y, target_y=y, noise=noise)

        return StepRows(
            retain=rows(), forget=rows(), exchange=rows() if self.config.request.exchange else None
        )


def on_meta(description: Mapping[str, Any]) -> DiTModel:
    """The DiT of a config.json without its numbers; the diffusion's tables are real."""
    built = build(dict(description), device="meta")
    assert isinstance(built, DiTModel)
    return built


def _vectors(calls: list[Call]) -> int:
    """How many vectors of the trained parameters' size are reduced by `calls`."""
    return sum(1 if name == "second_order_product" else len(arguments) for name, arguments, _ in calls)


class _Probe(Step):
    """Notes what a method asks for and answers with vectors of eight numbers."""

    @cached_property
    def calls(self) -> list[Call]:
        return []

    def _answer(self) -> Tensor:
        return torch.randn(8, generator=torch.Generator().manual_seed(len(self.calls)))

    def gradients(self, *names: str, twice: bool = False) -> list[Tensor]:
        self.calls.append(("gradients", names, {"twice": twice}))
        return [self._answer() + index for index, _ in enumerate(names)]

    def second_order_product(self, directions: Mapping[str, Tensor]) -> Tensor:
        self.calls.append(("second_order_product", (tuple(directions),), {}))
        return self._answer()


class _MetaStep(Step):
    """A step without values: what asks for a number does what it would do for any but 0."""

    def _differenced(self, directions: Mapping[str, Tensor]) -> Tensor:
        vector = torch.zeros_like(next(iter(directions.values())))
        for name, direction in directions.items():
            ahead = self._gradient_at(name, direction.clone())
            vector += ahead - (
                self._gradient_at(name, -direction)
                if self.hvp == "fd_central"
                else self._base[name, self._share]
            )
        return vector


class _OnMeta:
    """The model with timesteps on the CPU, where the schedule's tables are looked up, until they reach the
    network."""

    def __init__(self, model: DiTModel) -> None:
        self._model = model
        self.net: nn.Module = _Meta(model.net)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class _Meta(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.inner(x, t.to("meta"), y)
