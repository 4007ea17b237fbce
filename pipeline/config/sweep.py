"""A sweep: which settings of the main job are searched, how far each trial may go, and what makes one better
than another."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Section, SeededConfig
from pipeline.config.conditions import Only, while_
from pipeline.config.tracking import Tracking


class Distribution(Section):
    """One searched setting: exactly one of `loguniform`, `uniform` and `choice`."""

    loguniform: tuple[float, float] | None = Field(None, description="[low, high], even in the logarithm")
    uniform: tuple[float, float] | None = Field(None, description="[low, high], evenly")
    choice: list[Any] | None = Field(None, description="the values, each once")
    zero: bool = Field(
        False, description="loguniform: exactly 0 is a value too; it stands below the low end of the axis"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> "Distribution":
        kinds = [name for name in ("loguniform", "uniform", "choice") if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError(
                f"got {' and '.join(kinds) or 'no distribution'}, expected one of loguniform, uniform and"
                " choice"
            )
        bounds = self.loguniform or self.uniform
        if bounds and bounds[0] >= bounds[1]:
            raise ValueError(f"got low {bounds[0]:g} >= high {bounds[1]:g}, expected low < high")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError(
                f"got low {self.loguniform[0]:g}, expected above 0 for a logarithm; say zero: true to have"
                " exactly 0 among the values"
            )
        if self.zero and not self.loguniform:
            raise ValueError("zero: goes with loguniform; a uniform range or a choice can hold 0 itself")
        if self.choice is not None and (
            not self.choice or len({repr(value) for value in self.choice}) != len(self.choice)
        ):
            raise ValueError(f"got choice {self.choice}, expected at least one value, each once")
        return self


class Search(Section):
    algorithm: Literal["tpe", "random"] = Field(
        "tpe", description="tpe: Optuna's tree-structured Parzen estimator"
    )
    startup_trials: int = Field(6, ge=1, description="tpe: trials before the model of the objectives decides")
    objectives: list[str] = Field(
        ["settled_step", "retain_accuracy/min"],
        min_length=1,
        description="one: a single objective; more: a front; the first ranks first",
    )
    include_base: bool = Field(
        True,
        description=(
            "trial 0 is the base configuration itself; penalty 0 beside it where zero is among its values"
        ),
    )
    concurrency: int = Field(2, ge=1, description="trials that run at once at most")


class Budget(Section):
    """The same for every trial: `optim.max_steps` of the base and, where given, `trial_seconds`."""

    trials: int = Field(12, ge=1, description="trials in all")
    steps: int | None = Field(
        None, ge=1, description="optimiser steps of all trials together; absent: what the trials take"
    )
    seconds: float | None = Field(
        None, gt=0, description="wall seconds after which no trial goes on; needs trial_seconds"
    )
    trial_seconds: float | None = Field(
        None, gt=0, description="compute seconds (of steps) that a trial may spend; absent: unbounded"
    )


class Scheduler(Section):
    """Who is stopped early. Both judge by the settled measure: the worst upper bound of the window that has
    to hold."""

    kind: Literal["none", "asha", "median"] = Field(
        "none", description="asha: successive halving; median: against the median of the others"
    )
    grace_steps: int | None = Field(
        None, ge=1, description="no trial is stopped before; absent: evaluate.patience_steps of the base"
    )
    reduction: int = Field(3, ge=2, description="asha: one in so many goes on from a rung")
    min_trials: int = Field(3, ge=1, description="median: others that must have got so far")


class Trial(Section):
    runner: Literal["trainer", "inline"] = Field(
        "trainer",
        description=(
            "trainer: the main job's workers for every trial; inline: the same loop inside a trial's own warm"
            " process"
        ),
    )
    reuse: bool = Field(True, description="inline: a process takes the next trial when it is done with one")
    cpus: float = Field(1.0, gt=0, description="inline: of a trial; fractions let trials share a core")
    gpus: float = Field(0.0, ge=0, description="inline: of a trial; fractions let trials share a GPU")
    retries: int = Field(2, ge=0, description="times a trial that breaks is tried again")


class Verify(Section):
    """Selection picks what noise favoured, so a winner counts only on seeds that no trial saw."""

    samples: int | None = Field(
        None,
        ge=100,
        description="images of the forgotten classes; absent: evaluate.final_samples of the base",
    )
    retain_samples: int | None = Field(
        None, ge=1, description="of each retained class; absent: evaluate.final_retain_samples"
    )
    attempts: int = Field(3, ge=1, description="trials, best first, that are verified until one holds")


class SweepConfig(SeededConfig):
    conditions: ClassVar[tuple[Only, ...]] = (
        while_("search.startup_trials", "search.algorithm", "tpe"),
        while_("scheduler.grace_steps", "scheduler.kind", "asha", "median"),
        while_("scheduler.reduction", "scheduler.kind", "asha"),
        while_("scheduler.min_trials", "scheduler.kind", "median"),
        while_("trial.reuse trial.cpus trial.gpus", "trial.runner", "inline"),
    )

    run_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$",
        description="absent: made of the settings, so the same command continues",
    )
    base: str = Field(
        "jobs/configs/quickstart.yaml", description="configuration of the main job that the trials start from"
    )
    set: dict[str, Any] = Field({}, description="settings of it that all trials change, by dotted key")
    space: dict[str, Distribution] = Field(
        min_length=1, description="dotted key of the main job -> its distribution"
    )
    search: Search = Search()
    budget: Budget = Budget()
    scheduler: Scheduler = Scheduler()
    trial: Trial = Trial()
    verify: Verify = Verify()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _seconds_of_what(self) -> "SweepConfig":
        budget = self.budget
        if budget.seconds is not None and budget.trial_seconds is None:
            raise ValueError(
                f"budget.seconds: got {budget.seconds:g} without budget.trial_seconds; say what one trial may"
                " take of it"
            )
        if (
            budget.seconds is not None
            and budget.trial_seconds is not None
            and budget.seconds < budget.trial_seconds
        ):
            raise ValueError(
                f"budget.seconds: got {budget.seconds:g}, less than one trial's budget.trial_seconds"
                f" ({budget.trial_seconds:g}); raise it or shorten the trial"
            )
        return self
