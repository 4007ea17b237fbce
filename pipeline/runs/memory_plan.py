"""What a run needs of a GPU, before there is one: the configured step is taken on the meta device, where
tensors have shapes and no values, and their bytes are counted.

Calibrated against the CPU allocator's own records by tests/runs/test_memory_plan.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.compat import AsOnGpu, LiveBytes, OnMeta
from models.diffusion import Noise
from models.families.transformer import Transformer
from models.generative import GenerativeModel, build
from pipeline.config import UnlearnConfig
from pipeline.training.elastic import micro_batches, usable_world_size
from pipeline.unlearning.adversary import Adversary
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.gradients import Gradients, LocalGradients, Term
from pipeline.unlearning.losses import Weights, build_terms
from pipeline.unlearning.methods.preparation import Tools
from pipeline.unlearning.methods.table import METHODS, method_settings, own_losses, own_penalties
from pipeline.unlearning.noising import Rows, StepRows
from pipeline.unlearning.parameters import flat, select
from pipeline.unlearning.redirection import RedirectionRows, redirection_terms
from pipeline.unlearning.teacher import Teacher

MODES = ("exact", "recompute", "fd_central", "fd_forward")
GIB = 2**30
# blocks that a sharded step holds: the one that computes, its gradient, the next, and what two travel in
GATHERED = 5
USABLE = 0.9  # of the memory; the rest: the allocator's gaps, the CUDA context, the libraries' workspaces
FLOAT = 4  # bytes: weights, gradients and moments are float32 whatever the precision of the step


class Need(NamedTuple):
    """Bytes on one device at the step's peak. `weights`: the model, the teacher's copy and the average of the
    trained subset. Of a sharded run each is a worker's share; what it gathers for a while is among the
    `activations`: parts of the network in a step or, where that is more, all of it in a check."""

    weights: int
    gradients: int
    optimiser: int
    activations: int

    @property
    def total(self) -> int:
        return sum(self)


class Choice(NamedTuple):
    """How the penalty's gradient is made, on how many rows at once, and why: one line."""

    hvp: str
    micro_batch: int | None
    why: str
    fits: bool = True


class MemoryPlan:
    """The needs of `config` on a transformer of `description` (a config.json); every figure is made when it
    is asked for."""

    def __init__(self, config: UnlearnConfig, description: Mapping[str, Any]) -> None:
        self.config, self.description = config, description
        self.method = METHODS[config.method.name]
        self.options = method_settings(config.method.name, config.method.own)
        self.has_teacher = config.method.targets == "teacher" or self.method.teacher
        model = build(dict(description), device="meta")
        assert isinstance(model, Transformer)
        self.depth = model.architecture.depth
        self.parameters = sum(p.numel() for p in model.net.parameters())
        self.trainable = sum(p.numel() for p in select(model, config.trainable).values())
        self.block = sum(p.numel() for p in model.net.get_submodule("blocks.0").parameters())
        # that hold a parameter together
        self.holders = config.train.most if config.train.shard else 1
        self.rows = config.optim.batch_size // usable_world_size(config.partition.lanes, config.train.most)
        self.kind, _, self.blocks = config.trainable.partition(":")  # labels_and_adaln:4
        self.need, self.step = cache(self._need), cache(self._step)

    @cached_property
    def steps(self) -> "list[Counted]":
        """Those of the method's period, taken by a model of one block."""
        period = self.method.period(self.options)
        hvp = "fd_central" if self.config.train.shard else "recompute"
        return [self.step(1, 1, index, hvp, None)[0] for index in range(1, period + 1)]

    @property
    def second_order(self) -> bool:
        return any(step.products for step in self.steps)

    @property
    def reduced(self) -> float:
        """Elements averaged over the workers in a step: the mean over the method's period."""
        return self.trainable * sum(step.vectors for step in self.steps) / len(self.steps)

    @property
    def rows_by_kind(self) -> dict[str, int]:
        """A worker's rows of each kind in a step; the last are those under adversarial embeddings."""
        kinds, section = {"retained": self.rows}, self.config.redirection
        if self.config.method.depth == "weights":
            workers = self.config.optim.batch_size // self.rows
            kinds |= {"under the exchange": section.label_rows // workers}
            kinds |= {"under the forgotten label": section.label_rows // workers}
            kinds |= {"under other labels": section.others_rows // workers}
            kinds |= {"of near classes": section.near_rows // workers} if section.near_classes else {}
            kinds |= {"under adversarial embeddings": section.rows // workers}
        return kinds

    def _need(self, hvp: str, micro_batch: int | None = None) -> Need:
        """With `hvp` for the second-order product, on `micro_batch` rows of each kind at once (None: as
        configured). Blocks are alike: one and two are run, a straight line is drawn through their peaks."""
        heaviest = max(self.steps, key=lambda step: (step.products, step.vectors)).index
        one, frozen, trained = (
            self.step(depth, blocks, heaviest, hvp, micro_batch)[1]
            for depth, blocks in ((1, 1), (2, 1), (2, 2 if self.blocks else 1))
        )
        blocks = int(self.blocks or 1)
        peak = one + (frozen - one) * (self.depth - blocks) + (trained - one) * (blocks - 1)
        subset = FLOAT * self.trainable / self.holders
        gradients = subset * max(step.vectors for step in self.steps)
        copies = (2 if self.has_teacher else 1) + len(self.method.vectors)
        moments = 4 if self.config.optim.separate_moments else 2
        kept_in = moments * subset / (2 if self.config.optim.moments == "bf16" else 1)
        weights, passing = FLOAT * self.parameters + copies * subset, peak - gradients
        if self.config.train.shard:
            networks = 2 if self.has_teacher else 1
            weights = FLOAT * networks * self.parameters / self.holders + subset
            passing = max(passing + self._gathered, FLOAT * self.parameters - gradients)
        return Need(int(weights), int(gradients), int(kept_in), int(max(0, passing)))

    @property
    def _gathered(self) -> int:
        """Bytes of parameters and gradients that a worker holds whole during a sharded step: GATHERED blocks,
        and the rest of the network twice."""
        rest = self.parameters - self.depth * self.block
        return FLOAT * (GATHERED * self.block + 2 * rest)

    def choose(self, memory_gib: float | None) -> Choice:
        """The configured mode where it fits; `exact` gives way to `recompute`, with smaller micro-batches if
        it has to be."""
        hvp, micro_batch = self.config.method.hvp, self.config.optim.micro_batch
        first_order = f"{self.config.method.name} needs no second derivative: hvp plays no part"
        if memory_gib is None:
            why = "as configured; no train.memory_gib to fit it to" if self.second_order else first_order
            return Choice(hvp, micro_batch, why)
        budget, attempts = USABLE * memory_gib * GIB, []
        for mode, rows_at_once in self._tries():
            need = self.need(mode, rows_at_once).total
            on = f" on {rows_at_once} of {self.rows} rows at once" if rows_at_once else ""
            name = mode if self.second_order else "the step"
            attempts.append(f"{name}{on} needs {need / GIB:.1f} of {budget / GIB:.1f} usable GiB")
            if need <= budget:
                why = ", too much; ".join(attempts) + ": it fits"
                return Choice(mode, rows_at_once, why if self.second_order else f"{first_order}; {why}")
        advice = ": too much; lower optim.micro_batch or train fewer parameters"
        return Choice(hvp, micro_batch, "; ".join(attempts) + advice, fits=False)

    def _tries(self) -> list[tuple[str, int | None]]:
        """As configured, then on fewer rows at once: halved rather than one less, every try is a step
        taken."""
        hvp, rows = self.config.method.hvp, self.rows // micro_batches(self.config, self.rows)
        tries: list[tuple[str, int | None]] = [(hvp, self.config.optim.micro_batch)]
        if self.second_order and hvp != "exact":
            return tries
        while rows:
            tries.append(("recompute" if self.second_order else hvp, rows))
            rows = max((n for n in range(1, rows // 2 + 1) if self.rows % n == 0), default=0)
        return tries if self.second_order else [tries[0], *tries[2:]]

    def lines(self, memory_gib: float | None) -> list[str]:
        """The plan for people."""
        config, choice = self.config, self.choose(memory_gib)
        modes: tuple[str, ...] = MODES if self.second_order else MODES[:1]
        if config.train.shard and self.second_order:
            modes = MODES[2:]
        needs = [(mode, need := self.need(mode), need.total) for mode in modes]
        micro = f" with optim.micro_batch {choice.micro_batch}" if choice.micro_batch else ""
        rows = f"{self.rows} rows of each kind"
        if config.method.depth == "weights":
            rows = "rows: " + ", ".join(f"{count} {kind}" for kind, count in self.rows_by_kind.items())
        return [
            f"memory plan: {self.description['size']}, {self.parameters:,} parameters, {self.trainable:,}"
            f" trainable ({self.trainable / 1e6:.1f} M, {config.trainable})",
            f"  {self.reduced / 1e6:.1f} M elements reduced a step ({config.method.name}), checkpoint of the"
            f" trained subset {FLOAT * self.trainable / 1e6:.0f} MB",
            f"  {rows} on a worker, {config.train.precision}; GiB at the peak:",
            f"  {'hvp':11}" + "".join(f"{name:>13}" for name in (*Need._fields, "total")),
            *(f"  {m:11}" + "".join(f"{n / GIB:>13.2f}" for n in (*need, total)) for m, need, total in needs),
            f"  hvp {choice.hvp}{micro}: {choice.why}",
        ]

    def _step(
        self, depth: int, blocks: int, index: int, hvp: str, micro_batch: int | None
    ) -> "tuple[Counted, int]":
        """Step `index` of a model of `depth` blocks, the last `blocks` of them trained, and its peak bytes
        above the weights."""
        config, method = self.config, self.config.method
        architecture = {**self.description["architecture"], "depth": depth}
        micro = self.rows // micro_batch if micro_batch else micro_batches(config, self.rows)
        hvp = "recompute" if micro > 1 and hvp == "exact" else hvp
        with OnMeta(), torch.device("meta"), LiveBytes() as live:
            model = build({**self.description, "architecture": architecture}, device="meta")
            named = select(model, f"{self.kind}:{blocks}" if self.blocks else self.kind)
            teacher = Teacher(model, named) if self.has_teacher else None
            like = flat(list(named.values()), list(named.values()))
            memory = {name: torch.empty_like(like) for name in self.method.vectors}
            if method.depth == "weights":
                terms = self._redirection(model, teacher, micro)
            else:
                tools = Tools(model=model, teacher=teacher, settings=self.options, named=named, memory=memory)
                rows = _rows(model, self.rows)
                pairs = replace(rows, target_x0=rows.x0)  # for a method that pairs the rows to forget
                terms = build_terms(
                    model,
                    StepRows(retain=rows, forget=pairs, exchange=rows if config.request.exchange else None),
                    Weights(
                        exchange=method.exchange_weight, targets=method.targets, contrast=method.contrast
                    ),
                    teacher=teacher,
                    micro_batches=micro,
                    joint=hvp != "recompute",
                    own=own_losses(method.name, tools),
                    penalties=own_penalties(method.name, tools),
                    autocast=lambda: AsOnGpu(config.train.precision),
                )
            local = LocalGradients(params=list(named.values()), terms=terms, hvp=hvp)
            if config.train.shard:
                local = _shared(local, self.holders)
            step = Counted(index=index, local=local, collectives=Collectives(), memory=memory)
            live.now = live.peak = 0  # what was there before the step
            self.method.gradient(step, self.options)
        return step, live.peak

    def _redirection(
        self, model: GenerativeModel, teacher: Teacher | None, micro_batches: int
    ) -> dict[str, Term]:
        """The losses of depth weights on a worker's share of every kind of row."""
        assert teacher is not None
        section, (*held, adversarial) = self.config.redirection, self.rows_by_kind.values()
        adversary = Adversary(
            model,
            [0],
            [1],
            size=section.pool,
            buckets=section.buckets,
            rates=section.embedding_lr,
            restart_every=section.restart_every,
            seed=0,
        )
        return redirection_terms(
            model,
            RedirectionRows(
                held=[(1.0, _rows(model, count)) for count in held],
                adversarial=_rows(model, adversarial),
            ),
            section.weight,
            teacher=teacher,
            adversary=adversary,
            micro_batches=micro_batches,
            autocast=lambda: AsOnGpu(self.config.train.precision),
        )


def _rows(model: GenerativeModel, count: int) -> Rows:
    x0, y = torch.empty(count, *model.shape), torch.empty(count, dtype=torch.long)
    return Rows(x0=x0, y=y, target_y=y, noise=Noise(t=y, eps=x0))


@dataclass(kw_only=True)
class _Shared(LocalGradients):
    """What one of `holders` ranks has of the gradients: each is cut as soon as it is there."""

    whole: Sequence[Tensor]
    holders: int

    def _grads(self, loss: Tensor, *, create_graph: bool) -> Sequence[Tensor]:
        shards: dict[int, Tensor] = {}

        def cut(parameter: Tensor) -> None:
            assert parameter.grad is not None
            shards[id(parameter)] = _share(parameter.grad, self.holders).clone()
            parameter.grad = None

        hooks = [parameter.register_post_accumulate_grad_hook(cut) for parameter in self.whole]
        loss.backward()
        for hook in hooks:
            hook.remove()
        return [
            shards.get(id(parameter), torch.zeros_like(shard))
            for parameter, shard in zip(self.whole, self.params, strict=True)
        ]


def _shared(local: LocalGradients, holders: int) -> LocalGradients:
    shards = [_share(parameter.detach(), holders) for parameter in local.params]
    return _Shared(params=shards, terms=local.terms, hvp=local.hvp, whole=local.params, holders=holders)


def _share(tensor: Tensor, holders: int) -> Tensor:
    return tensor[: -(-len(tensor) // holders)]


class Counted(Gradients):
    """Counts the `vectors` (P,) that are reduced over the workers, and the second-order `products` among
    them."""

    vectors = products = 0

    def of(self, *names: str, twice: bool = False) -> list[Tensor]:
        self.vectors += len(names)
        return super().of(*names, twice=twice)

    def second_order_product(self, directions: Mapping[str, Tensor]) -> Tensor:
        self.vectors += 1
        self.products += 1
        return super().second_order_product(directions)
