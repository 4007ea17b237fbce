"""`method.name: auto`: which method serves this request best, by a small contest at equal compute-seconds. No Ray in it.

Successive halving: every contestant gets the same seconds of steps, the better half twice as many, and so on to one. The
winner then does the whole run from the base weights, exactly as if it had been named, so that it can be replayed; the
contest's noise is its own, so what the winner is measured by at the end took no part in choosing it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.config import UnlearnConfig
from pipeline.errors import InputError
from pipeline.request import WITHOUT_DRIVE
from pipeline.seeding import seed_of
from pipeline.sweep import scores
from pipeline.sweep.space import configured
from pipeline.unlearning.methods import METHODS

AUTO, CONTEST = "auto", "contest.json"
KNOWN_GOOD: dict[str, dict[str, Any]] = {  # the settings each method is known to work with (docs/methods.md); all else is the run's own
    "exchange": {},
    "surgery": {},
    "uno_s": {"method.penalty": 0.01, "method.surgery_every": 2},
    "esd": {},
}
assert set(KNOWN_GOOD) <= set(METHODS)


def contestants(config: UnlearnConfig) -> dict[str, UnlearnConfig]:
    """The methods that can serve the request, each with its settings. Raises `InputError` when there is no choice."""
    moved = [name for name in KNOWN_GOOD if config.request.exchange or config.method.targets == "data" or name not in WITHOUT_DRIVE]
    if len(moved) < 2:
        raise InputError(
            f"method.name: auto has only {', '.join(moved) or 'nothing'} to choose from for a request without exchange classes and teacher "
            "targets; name that method, or expected --set method.targets=data"
        )
    return {name: configured(config, {**KNOWN_GOOD[name], "method.name": name}) for name in moved}


def limited(config: UnlearnConfig, *, seconds: float | None, steps: int | None) -> UnlearnConfig:
    """`config` for a round of the contest: up to `seconds` or `steps`, on noise of the contest's own, ended by a small measure."""
    evaluate = config.evaluate.model_copy(update={"final_samples": 100, "final_retain_samples": config.evaluate.retain_samples})
    optim = config.optim.model_copy(
        update={"max_seconds": seconds, "max_steps": min(steps or config.optim.max_steps, config.optim.max_steps)}
    )
    return config.model_copy(update={"seed": seed_of(config.seed, "contest") % 2**31, "evaluate": evaluate, "optim": optim})


def standing(name: str, outcome: Mapping[str, Any], checks: Sequence[Mapping[str, Any]], config: UnlearnConfig) -> dict[str, Any]:
    """Where a contestant stands after a round. `keeps`: what is retained is within the gate's bounds."""
    if "failed" in outcome:
        return {"method": name, "failed": outcome["failed"]}
    retain = outcome["after"]["retain_accuracy"] or {}
    mean, lowest = retain.get("mean"), retain.get("min")
    gate = config.gate
    return {
        "method": name,
        "failed": None,
        "steps": outcome["steps"],
        "step_seconds": outcome["timing"]["step_seconds"],
        "seconds_per_step": outcome["timing"]["seconds_per_step"],
        "settled_step": outcome["settled_step"],
        "seconds_to_forget": outcome["timing"]["seconds_to_forget"],
        "held": scores.held(checks, config.evaluate.hold_steps),
        "retain_mean": mean,
        "retain_min": lowest,
        "keeps": None if mean is None or lowest is None else mean >= gate.min_retain_accuracy and lowest >= gate.min_class_accuracy,
    }


def order(standings: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Best first: who keeps the rest, then who settled in the fewest seconds, then the lower held bound, then the better retention."""

    def key(one: Mapping[str, Any]) -> tuple[Any, ...]:
        if one["failed"]:
            return (2,)
        seconds = one["seconds_to_forget"]
        return (int(one["keeps"] is False), seconds is None, seconds or 0.0, one["held"], -(one["retain_min"] or 0.0))

    return sorted(standings, key=key)


def settled_on(config: UnlearnConfig, contest: Mapping[str, Any]) -> UnlearnConfig:
    """`config` with the winner of a contest in the place of auto."""
    return configured(config, {**KNOWN_GOOD[contest["winner"]], "method.name": contest["winner"]})


def hold(config: UnlearnConfig, play: Callable[[dict[str, UnlearnConfig]], list[dict[str, Any]]]) -> dict[str, Any]:
    """Successive halving over the contestants; {"winner", "seconds", "rounds": [{"seconds", "standings" best first}]}.

    `play` takes each of the methods it is given as far as its configuration lets it, from where it stood, and returns their
    standings. The first call is a few steps of each, which tell the cost of a step; the seconds of `autopilot.steps` steps of
    the dearest method are then what everybody gets. Raises `RuntimeError` when nobody is left.
    """
    field = contestants(config)
    standings = play({name: limited(one, seconds=None, steps=config.evaluate.every) for name, one in field.items()})
    costs = [one["seconds_per_step"] for one in standings if not one["failed"]]
    if not costs:
        raise RuntimeError("auto: every contestant failed: " + "; ".join(f"{one['method']}: {one['failed']}" for one in standings))
    seconds = config.autopilot.seconds or config.autopilot.steps * max(costs)
    left, rounds = list(field), list[dict[str, Any]]()
    while len(left) > 1:
        ranking = order(play({name: limited(field[name], seconds=seconds, steps=None) for name in left}))
        rounds.append({"seconds": seconds, "standings": ranking})
        left = [one["method"] for one in ranking[: len(ranking) // 2] if not one["failed"]] or [ranking[0]["method"]]
        seconds *= 2
    if rounds[-1]["standings"][0]["failed"]:
        raise RuntimeError(f"auto: every contestant failed, {left[0]} with: {rounds[-1]['standings'][0]['failed']}")
    return {"winner": left[0], "seconds": rounds[0]["seconds"], "rounds": rounds}
