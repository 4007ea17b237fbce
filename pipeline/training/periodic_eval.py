"""The checks of a run: made in place by all ranks, or beside the training by whoever `Evaluator` stands for.

Either way what is decided is a function of the checks in the order of their steps. What is trained beyond the
step that decides is thrown away: the weights that are kept are those of a checked step, whenever its outcome
arrived.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from pipeline.evaluation.gate import likeness
from pipeline.evaluation.measure import Measures, measure
from pipeline.evaluation.stopping_rule import SettleRule
from pipeline.runtime.precision import autocast
from pipeline.runtime.stopwatch import phase

if TYPE_CHECKING:
    from pipeline.training.loop import Hooks
    from pipeline.training.step import Inputs

MOST_PENDING = 3  # checks under way at once; the step that would send one more waits for the oldest

log = logging.getLogger(__name__)


class Evaluator(Protocol):
    """Makes checks elsewhere. `take` hands over one outcome after the other, in the order in which they were
    sent."""

    def send(self, step: int, weights: Mapping[str, Tensor]) -> None: ...

    def take(self, wait_s: float) -> "tuple[int, Measures | None] | None":
        """The oldest check that was sent, once its outcome is there: None in place of measures that could not
        be made.

        None when there is nothing to hand over after `wait_s` seconds.
        """
        ...


class Elsewhere:
    """On the ranks that do not follow the checks: the first one does."""

    def send(self, step: int, weights: Mapping[str, Tensor]) -> None: ...

    def take(self, wait_s: float) -> "tuple[int, Measures | None] | None":
        return None


@dataclass(kw_only=True)
class Checks:
    """The settling rule with the weights that go with it. `missing`: steps whose check could not be made."""

    inputs: "Inputs"
    hooks: "Hooks"
    named: Mapping[str, torch.nn.Parameter]
    rule: SettleRule
    before: Mapping[str, Any]  # the base model's measures
    kept: dict[str, Tensor] = field(default_factory=dict)
    pending: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)

    def make(self, step: int, average: Mapping[str, Tensor]) -> None:
        """Check the averaged weights of `step`, or send them off to be checked."""
        self.pending[step] = {name: value.clone() for name, value in average.items()}
        evaluator = self.hooks.evaluator
        with phase("evaluation"):
            if evaluator is None:
                with standing_in(self.named, average):
                    self._judge(step, check(self.inputs, step, final=False))
            elif isinstance(evaluator, Elsewhere):
                self.pending.clear()
            else:
                evaluator.send(step, self.pending[step])
                self.collect()
                while len(self.pending) > MOST_PENDING and not self.hooks.interrupted():
                    self.collect(wait_s=1.0)

    def collect(self, wait_s: float = 0.0) -> None:
        """Take the outcomes that have come."""
        while self.pending and self.hooks.evaluator is not None:
            outcome = self.hooks.evaluator.take(wait_s)
            if outcome is None:
                return
            self._judge(*outcome)
            wait_s = 0.0

    def resume(self) -> None:
        """Ask again for the pending checks of a checkpoint, on the rank that will get their outcomes and on
        no other."""
        evaluator = self.hooks.evaluator
        if isinstance(evaluator, Elsewhere):
            self.pending.clear()  # the first rank's: here their outcome would be waited for without end
        for step, weights in sorted(self.pending.items()):
            assert evaluator is not None, "checks made in place are never pending"
            evaluator.send(step, weights)

    def plain(self) -> dict[str, Any]:
        return {"rule": asdict(self.rule), "missing": self.missing}

    def _judge(self, step: int, measures: Measures | None) -> None:
        weights = self.pending.pop(step)
        if measures is None:
            log.warning("the check of step %d could not be made; it counts as not passed", step)
            self.missing.append(step)
            self.rule.miss(step)
        else:
            n = self.inputs.config.evaluate.retain_samples * len(measures.retention.per_class)
            retained = measures.retained(self.before, self.inputs.subject.forgotten, n)
            if self.rule.observe(
                step, measures.decisive, retained, likeness(self.before, measures.to_result(), "low")
            ):
                self.kept = weights
            self.hooks.record(measures.to_record(step))
        if self.rule.stopped:
            self.pending.clear()


def check(inputs: "Inputs", step: int, *, final: bool) -> Measures:
    """Measure on noise of its own: every check has fresh seeds; before and after share theirs, so they can be
    compared in pairs."""
    evaluate = inputs.config.evaluate
    return measure(
        inputs.model,
        inputs.subject,
        inputs.collectives,
        forget_samples=evaluate.final_samples if final else evaluate.samples,
        retain_samples=evaluate.final_retain_samples if final else evaluate.retain_samples,
        seed=inputs.config.seed,
        purpose="final" if final else f"check at {step}",
        cfg_scale=evaluate.cfg_scale,
        steps=evaluate.final_sampler_steps if final else evaluate.sampler_steps,
        batch=evaluate.batch,
        further=final,
        autocast=lambda: autocast(evaluate.precision, inputs.device),
    )


class standing_in:
    """Context: `values` stand in for the trained parameters."""

    def __init__(self, named: Mapping[str, torch.nn.Parameter], values: Mapping[str, Tensor]):
        self._named, self._values = named, values

    def __enter__(self) -> None:
        self._trained = {name: p.detach().clone() for name, p in self._named.items()}
        self._copy(self._values)

    def __exit__(self, *exception: object) -> None:
        self._copy(self._trained)

    @torch.no_grad()
    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._named.items():
            parameter.copy_(values[name])
