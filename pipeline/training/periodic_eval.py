"""The periodic evaluation of a run, its checks: a few metrics on few images, made in place by all ranks or
beside the training by whoever `Evaluator` stands for.

Either way what is decided is a function of the checks in the order of their steps. What is trained beyond the
step that decides is thrown away: the weights that are kept are those of a checked step, whenever its outcome
arrived.
"""

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from pipeline.config.unlearn import Evaluate, Gate
from pipeline.evaluation.confidence import Proportion
from pipeline.evaluation.context import AFTER, EvalSpec
from pipeline.evaluation.gate import exchange_fidelity, forgotten_shares
from pipeline.evaluation.metrics.class_shares import overlap
from pipeline.evaluation.metrics.table import evaluate, evaluate_in_looks
from pipeline.evaluation.portions import Portions
from pipeline.evaluation.rotation import Window, paired, turn
from pipeline.evaluation.sampling import LANES
from pipeline.evaluation.stopping_rule import SettleRule
from pipeline.runtime.precision import autocast
from pipeline.runtime.stopwatch import phase

if TYPE_CHECKING:
    from pipeline.training.loop import Hooks
    from pipeline.training.step import Inputs

LACKING = 0.5  # a retained class below this share of the base's own samples is hardly sampled by it
MOST_PENDING = 3  # checks under way at once; the step that would send one more waits for the oldest
METRICS = (
    *("forget_fraction", "exchange_fraction", "exchange_density", "leakage"),
    *("retain_accuracy", "fid"),
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One evaluation of the model as it is: results by metric, as in the `before` and `after` blocks of
    result.json."""

    metrics: Mapping[str, Any]
    seconds: float

    @property
    def decisive(self) -> Proportion:
        """What the settling rule watches: the forget fraction or, for named samples, the attack's AUC."""
        if share := self.metrics["forget_fraction"]:
            return Proportion(**{key: share[key] for key in ("value", "n", "low", "high")})
        attack = self.metrics["membership"]
        return Proportion(attack["auc"], *(attack[key] for key in ("n", "low", "high")))

    def others_within(self, gate: Gate) -> bool:
        """Whether what `decisive` does not see stays within its bounds: no single class, now or earlier, is
        above its own beyond doubt nor, beside classes, the attack on named samples above its own."""
        shares = forgotten_shares(self.metrics).values()
        attack = self.metrics.get("membership") if self.metrics["forget_fraction"] else None
        return all(share["low"] <= gate.max_forget_fraction for share in shares) and (
            attack is None or attack["low"] <= gate.max_membership_auc
        )

    def retained(self, before: Mapping[str, Any], forgotten: Sequence[int]) -> Proportion | None:
        """How much is kept: of all images under retained labels those predicted right, estimated where only
        some labels were asked; without labels, overlap with the mixture `before`."""
        if shares := self.metrics.get("class_shares"):
            return overlap(shares, before["class_shares"], forgotten)
        all_labels, labels = (m["retain_accuracy"]["per_class"] for m in (before, self.metrics))
        if len(labels) < len(all_labels):
            return paired(before["retain_accuracy"], self.metrics["retain_accuracy"])
        return Proportion(**self.metrics["retain_accuracy"]["intervals"]["mean"])

    def to_result(self) -> dict[str, Any]:
        return dict(self.metrics)

    def to_record(self, step: int) -> dict[str, Any]:
        """The line of metrics.jsonl."""
        m = self.metrics
        share, attack, accuracy = m["forget_fraction"] or {}, m.get("membership"), m["retain_accuracy"]
        mean = accuracy["intervals"].get("mean", {})
        shares = m.get("class_shares", {}).get("per_class", {})
        earlier = (m.get("earlier_fraction") or {}).get("per_class", {})
        line = {"kind": "evaluation", "step": step, "forget_fraction": share.get("value")}
        line |= {f"forget_fraction/{key}": share.get(key) for key in ("low", "high", "n")}
        if attack:
            line |= {
                "membership_auc": attack["auc"],
                "membership_auc/low": attack["low"],
                "membership_auc/high": attack["high"],
                "loss/members": attack["loss_forget"],
                "loss/heldout": attack["loss_heldout"],
            }
        if copies := m.get("replication"):
            line |= {"replication": copies["value"]}
            line |= {f"replication/{key}": copies[key] for key in ("low", "high", "n")}
        line["exchange_fraction"] = (m["exchange_fraction"] or {}).get("value")
        line["exchange_density"] = (m["exchange_density"] or {}).get("forgotten", {}).get("value")
        line |= {f"retain_accuracy/{key}": accuracy[key] for key in ("mean", "min", "neighbours")}
        line |= {f"retain_accuracy/mean/{key}": mean[key] for key in ("low", "high", "n") if key in mean}
        line |= {f"fid/{space}": value for space, value in m.get("fid", {}).items()}
        line |= {f"class_share/{label}": value for label, value in shares.items()}
        line |= {f"forget_fraction/class_{label}": share["value"] for label, share in earlier.items()}
        if step == 0:  # what the base lacks of what is to be retained
            of_class = accuracy["intervals"].get("per_class", {})
            line |= {f"lacks/class_{c}": one["value"] for c, one in of_class.items() if one["high"] < LACKING}
        return line | {"seconds": self.seconds}


class Evaluator(Protocol):
    """Makes checks elsewhere. `take` hands over one outcome after the other, in the order in which they were
    sent."""

    def send(self, step: int, weights: Mapping[str, Tensor]) -> None: ...

    def take(self, wait_s: float) -> "tuple[int, Check | None] | None":
        """The oldest check that was sent, once its outcome is there: None in place of one that could not be
        made.

        None when there is nothing to hand over after `wait_s` seconds.
        """
        ...


class Elsewhere:
    """On the ranks that do not follow the checks: the first one does."""

    def send(self, step: int, weights: Mapping[str, Tensor]) -> None: ...

    def take(self, wait_s: float) -> "tuple[int, Check | None] | None":
        return None


@dataclass(kw_only=True)
class Checks:
    """The settling rule with the weights that go with it. `missing`: steps whose check could not be made."""

    inputs: "Inputs"
    hooks: "Hooks"
    standing_in: Callable[[Mapping[str, Tensor]], AbstractContextManager[None]]  # for the trained parameters
    rule: SettleRule
    before: Mapping[str, Any]  # the base model's results
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    pending: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    window: Window = field(default_factory=Window)

    def make(self, step: int, average: Mapping[str, Tensor]) -> None:
        """Check the averaged weights of `step`, or send them off to be checked."""
        self.pending[step] = {name: value.clone() for name, value in average.items()}
        evaluator = self.hooks.evaluator
        with phase("evaluation"):
            if evaluator is None:
                with self.standing_in(average):
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
        return {"rule": asdict(self.rule), "missing": self.missing, "window": self.window.plain()}

    def _judge(self, step: int, outcome: Check | None) -> None:
        weights = self.pending.pop(step)
        if outcome is None:
            log.warning("the check of step %d could not be made; it counts as not passed", step)
            self.missing.append(step)
            self.rule.miss(step)
        else:
            retained = outcome.retained(self.before, self.inputs.subject.spec.gone)
            likely = exchange_fidelity(self.before, outcome.metrics, "low")
            within = outcome.others_within(self.inputs.config.gate)
            if self.rule.observe(step, outcome.decisive, retained, likely, within):
                self.best_weights = weights
            line = outcome.to_record(step)
            if self.inputs.config.evaluate.rotation:
                self.window.add(step, outcome.metrics["retain_accuracy"])
                line |= self.window.record()
            self.hooks.record(line)
        if self.rule.stopped:
            self.pending.clear()


def check(inputs: "Inputs", step: int, *, final: bool, portions: Portions | None = None) -> Check:
    """Evaluate the model of `inputs` on noise of its own: every check has fresh seeds; before and after
    (`final`) share theirs, so they can be compared in pairs. Only these take distances in further feature
    spaces, of which few images would not tell much. Others sample as many retained labels as
    `evaluate.rotation` says, and leave distances out where these are not all.

    Collective: every rank calls it with the same arguments and gets the same answer. A final one goes on from
    `portions`, those of the same weights.
    """
    started = time.perf_counter()
    config, model, subject = inputs.config, inputs.model, inputs.subject
    spec = check_spec(subject.spec, config.evaluate, config.seed, "final" if final else f"check at {step}")
    spec = replace(spec, conditional=model.conditional)
    settings, in_turn = config.evaluate, False
    if settings.rotation and not final:
        number = -(-step // settings.every) - 1
        some = turn(spec.retained, settings.rotation, number, config.seed)
        in_turn = len(some) < len(spec.retained)
        spec = replace(spec, retained=some)
    context = replace(
        subject,
        model=model,
        spec=spec,
        spaces=subject.spaces if final else {},
        autocast=lambda: autocast(config.evaluate.precision, inputs.device),
    )
    names = [*METRICS, *([] if model.conditional else ["class_shares"])]
    names += ["earlier_fraction"] if spec.earlier else []
    names += ["membership"] if spec.sample_classes or not spec.forgotten else []
    names += ["replication"] if spec.sample_ids else []
    training = model.net.training
    model.net.eval()
    if in_turn:
        names.remove("fid")
    if settings.first_look and not final:
        metrics = evaluate_in_looks(
            names,
            context,
            inputs.collectives,
            first=settings.first_look,
            target=config.gate.max_forget_fraction,
        )[AFTER]
    else:
        metrics = evaluate(names, context, inputs.collectives, portions)[AFTER]
    model.net.train(training)
    return Check(metrics=metrics, seconds=time.perf_counter() - started)


def check_spec(spec: EvalSpec, settings: Evaluate, seed: int, purpose: str) -> EvalSpec:
    """`spec` with the numbers of images of a check, or of the final one: all labels in one plan."""
    final = purpose == "final"
    measuring = spec.settings.model_copy(
        update={
            "samples": settings.final_samples if final else settings.samples,
            "retain_samples": settings.final_retain_samples if final else settings.retain_samples,
            "cfg_scale": settings.cfg_scale,
            "sampler_steps": settings.final_sampler_steps if final else settings.sampler_steps,
            "sampler": settings.sampler,
            "null_samples": settings.final_null_samples if final else 0,
            "block": settings.batch,
            "membership_noises": settings.membership_noises,
            "membership_rows": sys.maxsize,
            "manifold_samples": sys.maxsize,
        }
    )
    return replace(spec, settings=measuring, seed=seed, purpose=purpose, joint=True, cuts=LANES, top=1)


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
