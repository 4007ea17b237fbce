"""When is it forgotten for good, which weights are kept, and when is it no use going on.

First crossing is the paper's measure; settled is the one that a gate may use. Every answer is a pure function
of the checks in the order of their steps: when a check was made, and what was trained meanwhile, changes
nothing.
"""

from dataclasses import dataclass

from pipeline.evaluation.confidence import Proportion

ALIKE_CHECKS = 2


@dataclass
class SettleRule:
    """Watches checks on fresh noise. `target` bounds what is measured (forget fraction or attack AUC),
    `patience_steps` is the window it has to stay there.

    first_crossing_step: first checked step whose measured share is below the target.
    settled_step: first checked step from which the UPPER 95 % bound stays below the target at every later
    check, once that has lasted `patience_steps` further steps; None until then.
    best_step: the check whose weights are kept. It is the latest of the latest stretch below the target whose
    retention is not worse than the best of that stretch beyond sampling noise (their intervals are apart);
    without such a stretch the latest that the retention floor does not object to.
    alike: bound on how much the forgotten labels' images look like the exchange classes; with one, a settled
    run goes on until the lower 95 % bound of that, `exchange_fidelity`, was not below it at two checks in a
    row (one alone may be luck). None: it ends as soon as it is settled.
    to_the_end: the run is not over when it is settled.
    stopped: "settled", "retention_floor" (at `floor_patience` checks in a row the upper bound of the
    retention was under
    `retention_floor`) or "checks" (`max_checks` are spent); None while it may go on.
    """

    target: float
    patience_steps: int
    retention_floor: float | None = None
    floor_patience: int = 1
    max_checks: int | None = None
    alike: float | None = None
    to_the_end: bool = False
    first_crossing_step: int | None = None
    below_since: int | None = None
    last_step: int = 0
    checks: int = 0
    harmed: int = 0  # checks in a row that the retention floor objects to
    best_step: int | None = None
    kept_below: bool = False  # the kept check belongs to a stretch below the target
    found_alike: int = 0  # checks in a row whose lower bound is not below `alike`
    best_retained: float = 0.0  # of the latest such stretch: the highest lower bound

    def observe(
        self,
        step: int,
        measured: Proportion,
        retained: Proportion | None = None,
        exchange_fidelity: float | None = None,
        others_within: bool = True,
    ) -> bool:
        """Take the check made after `step` steps; checks come in order. True: its weights are the ones to
        keep from now on.

        `others_within`: whether all that has to stay below a target of its own does, such as single classes
        and those forgotten earlier; without that nothing counts as below.
        """
        self._count(step)
        if measured.value < self.target and others_within and self.first_crossing_step is None:
            self.first_crossing_step = step
        alike = self.alike is not None and exchange_fidelity is not None and exchange_fidelity >= self.alike
        self.found_alike = self.found_alike + 1 if alike else 0
        harmed = (
            self.retention_floor is not None and retained is not None and retained.high < self.retention_floor
        )
        self.harmed = self.harmed + 1 if harmed else 0
        if measured.high < self.target and others_within:
            begins = self.below_since is None
            self.below_since = step if begins else self.below_since
            keep = begins or retained is None or retained.high >= self.best_retained
            if retained is not None:
                self.best_retained = retained.low if begins else max(self.best_retained, retained.low)
            self.kept_below = True
        else:
            self.below_since = None
            keep = self.best_step is None or not (self.kept_below or harmed)
        if keep:
            self.best_step = step
        return keep

    def miss(self, step: int) -> None:
        """The check of `step` could not be made: nothing is known, so nothing has stayed below the target."""
        self._count(step)
        self.below_since, self.found_alike = None, 0

    def _count(self, step: int) -> None:
        assert step > self.last_step or self.last_step == 0
        self.last_step, self.checks = step, self.checks + 1

    @property
    def settled_step(self) -> int | None:
        is_settled = self.below_since is not None and self.last_step - self.below_since >= self.patience_steps
        return self.below_since if is_settled else None

    @property
    def done(self) -> bool:
        return self.settled_step is not None

    @property
    def stopped(self) -> str | None:
        if self.done and not self.to_the_end and (self.alike is None or self.found_alike >= ALIKE_CHECKS):
            return "settled"
        if self.retention_floor is not None and self.harmed >= self.floor_patience:
            return "retention_floor"
        return "checks" if self.max_checks is not None and self.checks >= self.max_checks else None
