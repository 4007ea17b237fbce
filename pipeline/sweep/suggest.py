"""Which point comes next: Optuna's samplers, asked and told strictly in order.

With trials side by side, what a sampler knows when it is asked usually depends on who finished first. Here
trial n is suggested from the results of trials 0 to n - concurrency, no more and no fewer, and waits for
them. So the sequence is a function of the seed and of those results, whatever the machine does, and can be
played again after an interruption.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipeline.config.sweep import Distribution, Search
from pipeline.sweep.space import Settings, below_zero, rounded

if TYPE_CHECKING:
    import optuna

REDRAWS = 20  # of a point that was there before
Values = list[float] | None  # of the objectives, in their order; None: the trial broke


@dataclass(kw_only=True)
class Suggestions:
    """`directions` are "minimize" or "maximize", one for each objective; `points` come
    first, in their order."""

    space: Mapping[str, Distribution]
    search: Search
    seed: int
    directions: Sequence[Literal["minimize", "maximize"]]
    points: Sequence[Settings]
    asked: list[Settings] = field(default_factory=list)
    results: dict[int, Values] = field(default_factory=dict)
    _study: "optuna.Study | None" = None
    _trials: "list[optuna.Trial]" = field(default_factory=list)
    _told: int = 0

    def ready(self) -> bool:
        """Whether all results are there that the next suggestion is to be made of."""
        needed = len(self.asked) - self.search.concurrency + 1
        return all(number in self.results for number in range(max(0, needed)))

    def ask(self) -> tuple[int, Settings]:
        """The next trial's number and settings. Call it only when `ready`."""
        assert self.ready()
        study = self._made()
        number = len(self.asked)
        for told in range(self._told, max(0, number - self.search.concurrency + 1)):
            self._tell(study, told, self.results[told])
            self._told = told + 1
        for _ in range(REDRAWS):
            trial = study.ask()
            settings = {key: _suggest(trial, key, distribution) for key, distribution in self.space.items()}
            if settings not in self.asked:
                break
            # the same again would tell nothing new; a small space may hold nothing else
            study.tell(trial, state=_failed())
        else:
            trial = study.ask()
            settings = {key: _suggest(trial, key, distribution) for key, distribution in self.space.items()}
        self._trials.append(trial)
        self.asked.append(settings)
        return number, settings

    def tell(self, number: int, values: Values) -> None:
        """The result of a trial. Results may come in any order; a second one for the same
        trial is ignored."""
        self.results.setdefault(number, values)

    def __getstate__(self) -> dict[str, Any]:
        """Everything that matters: the sampler's own state follows from it."""
        return {**self.__dict__, "_study": None, "_trials": [], "_told": 0}

    def _made(self) -> "optuna.Study":
        """The study; after an interruption the same questions and answers again, which have to give the same
        points."""
        if self._study is None:
            self._study = _new_study(self)
            before, self.asked = self.asked, []
            for number, settings in enumerate(before):
                assert self.ask() == (
                    number,
                    settings,
                ), f"trial {number} would be {self.asked[-1]} now and was {settings}"
        return self._study

    def _tell(self, study: "optuna.Study", number: int, values: Values) -> None:
        if values is None:
            study.tell(self._trials[number], state=_failed())
        else:
            study.tell(self._trials[number], values)


def _failed() -> Any:
    from optuna.trial import TrialState

    return TrialState.FAIL


def _new_study(suggestions: Suggestions) -> "optuna.Study":
    import warnings

    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = suggestions.search
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler: optuna.samplers.BaseSampler
        if search.algorithm == "tpe":
            sampler = optuna.samplers.TPESampler(
                seed=suggestions.seed,
                n_startup_trials=search.startup_trials,
                multivariate=True,
                constant_liar=search.concurrency > 1,
            )
        else:
            sampler = optuna.samplers.RandomSampler(seed=suggestions.seed)
        study = optuna.create_study(sampler=sampler, directions=list(suggestions.directions))
    for point in suggestions.points:
        study.enqueue_trial({key: _coordinate(suggestions.space[key], value) for key, value in point.items()})
    return study


def _suggest(trial: "optuna.Trial", key: str, distribution: Distribution) -> Any:
    if distribution.choice is not None:
        options = distribution.choice
        if all(isinstance(option, int | float) and not isinstance(option, bool) for option in options):
            # an order that the sampler may use
            return sorted(options)[trial.suggest_int(key, 0, len(options) - 1)]
        return options[trial.suggest_categorical(key, range(len(options)))]
    if distribution.uniform is not None:
        return rounded(trial.suggest_float(key, *distribution.uniform))
    assert distribution.loguniform is not None
    low, high = distribution.loguniform
    if not distribution.zero:
        return rounded(trial.suggest_float(key, low, high, log=True))
    value = trial.suggest_float(key, below_zero(distribution), high, log=True)
    return rounded(value) if value >= low else 0.0


def _coordinate(distribution: Distribution, value: Any) -> Any:
    """Where `value` lies in the study's own terms: the inverse of `_suggest`."""
    if distribution.choice is not None:
        options = distribution.choice
        numbers = all(isinstance(option, int | float) and not isinstance(option, bool) for option in options)
        return (sorted(options) if numbers else options).index(value)
    return below_zero(distribution) if distribution.zero and value == 0 else value


def importance(suggestions: Suggestions, objective: int) -> dict[str, float]:
    """How much of the objective's variance over the finished trials each setting explains (fANOVA); empty
    when that cannot be said."""
    import optuna

    if sum(values is not None for values in suggestions.results.values()) < 4:
        return {}
    again = Suggestions(
        space=suggestions.space,
        search=suggestions.search,
        seed=suggestions.seed,
        directions=suggestions.directions,
        points=suggestions.points,
    )
    again.asked = list(suggestions.asked)
    again.results = dict(suggestions.results)
    study = again._made()
    for number in range(again._told, len(again.asked)):
        if number in again.results:
            again._tell(study, number, again.results[number])
    finished = [
        trial.values[objective] for trial in study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    ]
    if len(set(finished)) < 2:
        return {}
    found = optuna.importance.get_param_importances(
        study,
        evaluator=optuna.importance.FanovaImportanceEvaluator(seed=suggestions.seed),
        target=lambda trial: trial.values[objective],
    )
    return {key: float(value) for key, value in found.items()}
