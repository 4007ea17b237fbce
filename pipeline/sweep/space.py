"""The search space: which keys of the main job it may name, the values it holds, a trial's configuration from
a point of it; and the space as Optuna has it."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from pipeline import config as configuration
from pipeline.config import SweepConfig, UnlearnConfig
from pipeline.config.conditions import at
from pipeline.config.sweep import Distribution
from pipeline.errors import InputError
from pipeline.runs.request_checks import with_own_settings
from pipeline.sweep.scores import OBJECTIVES
from pipeline.unlearning.methods.table import settings_classes

if TYPE_CHECKING:
    import optuna

SEARCHABLE = (
    "method.",
    "optim.",
    "trainable",
    "train.precision",
)  # what else there is says which question is asked, not how it is answered
SHARED = ("optim.max_steps",)  # the budget, the same for all
Settings = dict[str, Any]  # dotted key -> value: a point of the space


def base_config(config: SweepConfig) -> UnlearnConfig:
    """The main job's configuration that every trial starts from, under the sweep's storage, seed and
    tracking."""
    overrides = _as_overrides(_by_key(config.set))
    values = configuration.read_yaml(config.base)
    values |= {
        "storage": config.storage,
        "seed": config.seed,
        "tracking": config.tracking.model_dump(mode="json"),
        "run_id": None,
    }
    if config.trial.runner == "inline":
        trial = {"workers": 1, "cpus_per_worker": config.trial.cpus, "gpus_per_worker": config.trial.gpus}
        values["train"] = {**values.get("train", {}), **trial}
    values["optim"] = {
        **values.get("optim", {}),
        **({"max_seconds": config.budget.trial_seconds} if config.budget.trial_seconds else {}),
    }
    return with_own_settings(configuration.parse_given(UnlearnConfig, values, overrides))


def configured(base: UnlearnConfig, settings: Mapping[str, Any]) -> UnlearnConfig:
    """`base` with the point's settings, a method's own as far as it has them; raises `InputError` for values
    that do not go together."""
    values = configuration.apply_overrides(base.model_dump(), _as_overrides(settings))
    config = configuration.parse(UnlearnConfig, values)
    if "method.name" in settings:
        config.method.inherit(
            frozenset(key for kind in settings_classes().values() for key in kind.model_fields)
        )
    return with_own_settings(config)


def check_space(space: Mapping[str, Distribution], base: UnlearnConfig) -> None:
    """Raise `InputError` for a key no job knows (naming those near it), one that must be the same for all, or
    a value it refuses."""
    for key, distribution in space.items():
        owner = _owner(key, space, base)
        for value in _samples(distribution):
            try:
                configured(base, {**owner, key: value})
            except InputError as error:
                raise InputError(f"space: {error}") from error
        if key in SHARED or not key.startswith(SEARCHABLE):
            raise InputError(
                f"space: got {key!r}, which has to be the same for all trials or they would not answer the"
                " same question; searchable are the settings under"
                f" {', '.join(name.rstrip('.') for name in SEARCHABLE)} except {', '.join(SHARED)}"
            )
        if key == "optim.batch_size" and distribution.choice is None:
            raise InputError(
                "space: optim.batch_size: got a range, expected a choice, since the stream of every batch"
                " size is prepared beforehand"
            )


def _owner(key: str, space: Mapping[str, Distribution], base: UnlearnConfig) -> Settings:
    """The method that a setting of one method alone belongs to, of those the space names."""
    section, _, name = key.partition(".")
    methods = (space["method.name"].choice or []) if "method.name" in space else []
    kinds = settings_classes()
    owners = [method for method in methods if method in kinds and name in kinds[method].model_fields]
    return {"method.name": owners[0]} if section == "method" and owners else {}


def fixed_points(space: Mapping[str, Distribution], base: UnlearnConfig) -> list[Settings]:
    """Tried first: the base itself and, for every key with `zero`, the base with exactly 0 there. Only points
    inside the space."""
    here = {key: at(base, key) for key in space}
    points = [here, *({**here, key: 0.0} for key, distribution in space.items() if distribution.zero)]
    inside = [point for point in points if all(holds(space[key], value) for key, value in point.items())]
    return [point for number, point in enumerate(inside) if point not in inside[:number]]


def holds(distribution: Distribution, value: Any) -> bool:
    """Whether the distribution can give `value`."""
    if distribution.choice is not None:
        return value in distribution.choice
    if value is None:  # the base's method does not have this setting
        return False
    bounds = distribution.loguniform or distribution.uniform
    assert bounds is not None
    return (distribution.zero and value == 0) or bounds[0] <= value <= bounds[1]


def shown(settings: Mapping[str, Any]) -> str:
    """`penalty 0.01, surgery_every 2`: a point in a line."""
    return ", ".join(
        f"{key.rsplit('.', 1)[-1]} {f'{value:.3g}' if isinstance(value, float) else value}"
        for key, value in settings.items()
    )


def below_zero(distribution: Distribution) -> float:
    """Where the axis of a `zero` distribution begins: what lies between there and `low` stands for 0, an
    eighth of the axis."""
    assert distribution.loguniform is not None
    low, high = distribution.loguniform
    return math.exp(math.log(low) - math.log(high / low) / 7)


def distributions(space: Mapping[str, Distribution]) -> "dict[str, optuna.distributions.BaseDistribution]":
    """The axes of Optuna's study: a choice is the index of its value, among numbers in their order."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    axes: dict[str, optuna.distributions.BaseDistribution] = {}
    for key, distribution in space.items():
        if distribution.choice is not None:
            count = len(distribution.choice)
            ordered = IntDistribution(0, count - 1)
            axes[key] = ordered if _ordered(distribution) else CategoricalDistribution(range(count))
        elif distribution.uniform is not None:
            axes[key] = FloatDistribution(*distribution.uniform)
        else:
            assert distribution.loguniform is not None
            low, high = distribution.loguniform
            low = below_zero(distribution) if distribution.zero else low
            axes[key] = FloatDistribution(low, high, log=True)
    return axes


def settings_at(space: Mapping[str, Distribution], coordinates: Mapping[str, Any]) -> Settings:
    """The settings of a point of the study; floats have six digits: what is shown is what was run."""

    def value(distribution: Distribution, coordinate: Any) -> Any:
        if distribution.choice is not None:
            return _options(distribution)[coordinate]
        if distribution.zero and distribution.loguniform and coordinate < distribution.loguniform[0]:
            return 0.0
        return float(f"{coordinate:.6g}")

    return {key: value(distribution, coordinates[key]) for key, distribution in space.items()}


def coordinates_of(space: Mapping[str, Distribution], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `settings_at`."""

    def coordinate(distribution: Distribution, value: Any) -> Any:
        if distribution.choice is not None:
            return _options(distribution).index(value)
        return below_zero(distribution) if distribution.zero and value == 0 else value

    return {key: coordinate(distribution, settings[key]) for key, distribution in space.items()}


def study_of(
    config: SweepConfig,
    rows: Sequence[Mapping[str, Any]],
    first: Sequence[Settings] = (),
    *,
    storage: "optuna.storages.BaseStorage | None" = None,
) -> "optuna.Study":
    """Optuna's study in `storage` (absent: memory) with the trials that have ended (`rows` of the table), and
    what it is to suggest `first`.

    A sampler that goes on from `rows` is seeded by how many they are: it would repeat itself otherwise.
    """
    import warnings

    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search, seed = config.search, config.seed + len(rows)
    sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
    if search.algorithm == "tpe":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=seed,
                n_startup_trials=search.startup_trials,
                multivariate=True,
                constant_liar=search.concurrency > 1,
            )
    study = optuna.create_study(
        storage=storage,
        sampler=sampler,
        directions=[OBJECTIVES[name].direction for name in search.objectives],
    )
    states, axes = optuna.trial.TrialState, distributions(config.space)
    for row in rows:
        study.add_trial(
            optuna.trial.create_trial(
                state=states.FAIL if row["values"] is None else states.COMPLETE,
                values=row["values"],
                params=coordinates_of(config.space, row["settings"]),
                distributions=axes,
            )
        )
    for settings in first:
        study.enqueue_trial(coordinates_of(config.space, settings))
    return study


def importance(study: "optuna.Study", objective: int, seed: int) -> dict[str, float]:
    """How much of the objective's variance over the finished trials each setting explains (fANOVA); empty
    when that cannot be said."""
    import optuna

    trials = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    if len(trials) < 4 or len({trial.values[objective] for trial in trials}) < 2:
        return {}
    shares = optuna.importance.get_param_importances(
        study,
        evaluator=optuna.importance.FanovaImportanceEvaluator(seed=seed),
        target=lambda trial: trial.values[objective],
    )
    return {key: float(share) for key, share in shares.items()}


def _ordered(distribution: Distribution) -> bool:
    return all(
        isinstance(option, int | float) and not isinstance(option, bool)
        for option in distribution.choice or []
    )


def _options(distribution: Distribution) -> list[Any]:
    options = distribution.choice or []
    return sorted(options) if _ordered(distribution) else options


def _samples(distribution: Distribution) -> list[Any]:
    if distribution.choice is not None:
        return distribution.choice
    bounds = distribution.loguniform or distribution.uniform
    assert bounds is not None
    low, high = bounds
    return [low, low + 0.37 * (high - low), high, *([0.0] if distribution.zero else [])]


def _by_key(settings: Mapping[str, Any]) -> Settings:
    """A section given as a mapping, as `--set set.optim.lr=...` makes it, key by key; later ones win."""
    by_key: Settings = {}
    for key, value in settings.items():
        nested = "." not in key and isinstance(value, dict)
        by_key |= {f"{key}.{name}": inner for name, inner in value.items()} if nested else {key: value}
    return by_key


def _as_overrides(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={_as_text(value)}" for key, value in settings.items()]


def _as_text(value: Any) -> str:
    """YAML on one line: mappings with class keys have no JSON."""
    return (
        yaml.safe_dump(value, default_flow_style=True).strip()
        if isinstance(value, dict)
        else json.dumps(value)
    )
