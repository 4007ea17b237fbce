"""Runs that must not be called settled: one that crosses the target and comes back, one that was watched too
briefly."""

from typing import Any

import pytest
from runs import run, run_config

from models.weights import weights_digest
from pipeline.config import Gate, UnlearnConfig
from pipeline.evaluation.confidence import proportion
from pipeline.evaluation.context import AFTER
from pipeline.evaluation.gate import judge_gate
from pipeline.evaluation.metrics.retain_accuracy import accuracy
from pipeline.reports.text import gate_state, namer, summary
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.loop import Outcome

KEPT = accuracy([0, 2, 3], [0, 2, 3], [2])


def tell(monkeypatch: pytest.MonkeyPatch, shares: dict[int, float], final: float) -> None:
    """Checks find the forgotten class in `shares[step]` of 200 images, everything else whole, and `final` of
    500 at the end."""
    from pipeline.training import periodic_eval

    evaluate = periodic_eval.evaluate

    def told(names: Any, context: Any, *further: Any) -> Any:
        sides, purpose = evaluate(names, context, *further), context.spec.purpose
        step = None if purpose == "final" else int(purpose.removeprefix("check at "))
        share, n = (final, 500) if step is None else (shares[step], 200)
        forgotten = proportion(round(share * n), n).to_dict()
        found = {"forget_fraction": forgotten, "retain_accuracy": KEPT, "leakage": None}
        return {AFTER: sides[AFTER] | found}

    monkeypatch.setattr(periodic_eval, "evaluate", told)


def watched_config(shares: dict[int, float], **settings: Any) -> UnlearnConfig:
    return run_config(**{"gate.max_forget_fraction": 0.05, "optim.max_steps": max(shares), **settings})


def watched(
    monkeypatch: pytest.MonkeyPatch, shares: dict[int, float], final: float, **settings: Any
) -> Outcome:
    """A run whose checks find what `tell` says."""
    tell(monkeypatch, shares, final)
    return run(watched_config(shares, **settings))[0]


def gated(outcome: Outcome) -> dict[str, Any]:
    plain = {
        "before": outcome.before,
        "after": outcome.after,
        "settled_step": outcome.settled_step,
        "steps": outcome.steps,
    }
    return judge_gate(Gate(), plain, 0.98)


def refused(gate: dict[str, Any]) -> list[str]:
    return [check["name"] for check in gate["checks"] if not check["passed"]]


def test_a_run_that_crosses_and_comes_back_has_not_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {2: 0.9, 4: 0.0, 6: 0.01, 8: 0.44, 10: 0.56, 12: 0.5}
    # even where the weights that are kept sample none of it
    outcome = watched(monkeypatch, shares, 0.0, **{"evaluate.patience_steps": 8})
    assert (outcome.first_crossing_step, outcome.settled_step) == (4, None)
    gate = gated(outcome)
    assert refused(gate) == ["settled", "held_steps"]
    result = {
        "request": {"classes": [1], "exchange": {"1": 2}},
        "before": outcome.before,
        "after": outcome.after,
        "first_crossing_step": outcome.first_crossing_step,
        "settled_step": outcome.settled_step,
        "gate": gate,
    }
    said = summary(result, namer(None))
    assert "first came under 5\u00a0% at step 4 but did not stay there: it has not settled" in said
    assert gate_state(result)["text"] == "Gate refused" and "stays forgotten" in said


def test_a_run_that_was_watched_too_briefly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {2: 0.0, 4: 0.0, 6: 0.0}
    outcome = watched(monkeypatch, shares, 0.0, **{"evaluate.patience_steps": 2})
    assert outcome.settled_step == 2 and outcome.steps == 4
    assert refused(gated(outcome)) == ["held_steps"]


def test_a_run_that_stays_forgotten_through_the_window_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = watched(monkeypatch, dict.fromkeys(range(2, 14, 2), 0.0), 0.0, **{"evaluate.patience_steps": 8})
    assert outcome.settled_step == 2 and refused(gated(outcome)) == []


def test_a_continued_run_keeps_the_weights_of_a_check_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class is gone at step 2 and comes back: the weights of step 2 are registered, also where the run
    was stopped at step 4 and went on from its checkpoint."""
    shares = {2: 0.0, 4: 0.9, 6: 0.9, 8: 0.9}
    tell(monkeypatch, shares, 0.0)
    config = watched_config(shares, **{"optim.ema": 0.5})
    whole, _, saved = run(config)
    first, second = (Checkpoint.from_files(files) for files in saved[:2])
    assert whole.best_step == 2 and (first.progress["step"], second.progress["step"]) == (2, 4)
    assert weights_digest(first.average) == weights_digest(whole.trained) != weights_digest(second.average)
    for start in (first, second):
        assert weights_digest(start.best_weights) == weights_digest(whole.trained)
        rest, _, later = run(config, start)
        assert rest.best_step == 2 and weights_digest(rest.trained) == weights_digest(whole.trained)
        assert weights_digest(Checkpoint.from_files(later[-1]).best_weights) == weights_digest(whole.trained)
