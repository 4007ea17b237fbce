"""When is it forgotten for good. First crossing is the paper's measure; settled is the one that a gate may use."""

from dataclasses import dataclass, field
from typing import Protocol


class Measured(Protocol):
    """A measured quantity that has to come down: its value and its upper 95 % bound."""

    @property
    def value(self) -> float: ...
    @property
    def high(self) -> float: ...


@dataclass
class SettleRule:
    """Watches checks on fresh noise. `target` bounds what is measured (forget fraction or attack AUC), `hold_steps` is the
    window it has to stay there.

    first_crossing_step: first checked step whose measured share is below the target.
    settled_step: first checked step from which the UPPER 95 % bound stays below the target at every later check, once
    that has lasted `hold_steps` further steps; None until then.
    """

    target: float
    hold_steps: int
    first_crossing_step: int | None = None
    below_since: int | None = None
    last_step: int = field(default=0)

    def observe(self, step: int, measured: Measured) -> None:
        """Take the check made after `step` steps; checks come in order."""
        assert step > self.last_step or self.last_step == 0
        self.last_step = step
        if measured.value < self.target and self.first_crossing_step is None:
            self.first_crossing_step = step
        if measured.high >= self.target:
            self.below_since = None
        elif self.below_since is None:
            self.below_since = step

    @property
    def settled_step(self) -> int | None:
        held = self.below_since is not None and self.last_step - self.below_since >= self.hold_steps
        return self.below_since if held else None

    @property
    def done(self) -> bool:
        return self.settled_step is not None
