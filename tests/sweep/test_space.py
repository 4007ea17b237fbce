"""The search space: what it refuses, what it holds, which points come first."""

import pytest
from sweeps import ROOT

from pipeline.config import SweepConfig, UnlearnConfig, load, parse
from pipeline.config.sweep import Distribution
from pipeline.errors import InputError
from pipeline.sweep.scores import check_objectives
from pipeline.sweep.space import base_config, below_zero, check_space, configured, fixed_points, holds

QUICK = "jobs/configs/sweep_quickstart.yaml"


def sweep(*overrides: str) -> SweepConfig:
    return load(SweepConfig, QUICK, ["storage=/nowhere", *overrides])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "space={method.penalti: {loguniform: [0.1, 1]}}",
            r"unknown key 'method\.penalti': did you mean .*penalty",
        ),
        ("space={hvp: {choice: [exact]}}", r"unknown key 'hvp': did you mean method\.hvp\?"),
        ("space={method.eta: {uniform: [1, 5]}}", r"method\.eta: uno_s does not have it; its settings are"),
        (
            "space={method.name: {choice: [uno_s, esd]}, method.saliency: {uniform: [0.1, 0.5]}}",
            r"method\.saliency: uno_s does not have it",
        ),
        ("space={method.surgery_every: {choice: [0, 1]}}", r"method\.surgery_every: got 0"),
        ("space={method.surgery_every: {uniform: [1, 5]}}", r"method\.surgery_every: got 2\.48"),
        ("space={method.name: {choice: [uno_s, magic]}}", r"method\.name: got 'magic'"),
        (
            "space={request.retain: {choice: [all, neighbours]}}",
            r"got 'request\.retain', which has to be the same for all trials",
        ),
        (
            "space={optim.max_steps: {choice: [4, 8]}}",
            r"got 'optim\.max_steps', which has to be the same for all trials",
        ),
        ("space={optim.batch_size: {choice: [12]}}", r"optim\.batch_size: got 12, expected a multiple"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_in_one_line(override: str, message: str) -> None:
    config = sweep(override)
    with pytest.raises(InputError, match=message) as caught:
        check_space(config.space, base_config(config))
    assert str(caught.value).startswith("space: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        ("{loguniform: [1, 0.1]}", "low 1 >= high 0.1"),
        ("{loguniform: [0.1, 0.1]}", "low 0.1 >= high 0.1"),
        ("{uniform: [2, 1]}", "low 2 >= high 1"),
        ("{loguniform: [0, 1]}", "above 0 for a logarithm; say zero: true"),
        ("{uniform: [0, 1], zero: true}", "zero: goes with loguniform"),
        ("{uniform: [0, 1], choice: [1]}", "got uniform and choice, expected one of"),
        ("{}", "got no distribution"),
        ("{choice: []}", "at least one value"),
        ("{choice: [1, 1]}", "each once"),
        ("{loguniforme: [0.1, 1]}", "valid keys"),
    ],
)
def test_a_distribution_that_is_none_is_refused(distribution: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sweep(f"space={{method.penalty: {distribution}}}")


def test_the_base_and_penalty_zero_come_first() -> None:
    config = sweep()
    base = base_config(config)
    assert fixed_points(config.space, base) == [
        {"method.penalty": 0.01, "method.surgery_every": 2},
        {"method.penalty": 0.0, "method.surgery_every": 2},
    ]
    outside = sweep("set.method.penalty=5")
    assert fixed_points(outside.space, base_config(outside)) == [
        {"method.penalty": 0.0, "method.surgery_every": 2}
    ]


def test_the_base_is_the_main_jobs_configuration_under_the_sweeps_storage() -> None:
    base = base_config(
        sweep("seed=5", "set.optim.lr=0.5", "set.evaluate={every: 4}", "tracking.model_name=other")
    )
    quickstart = load(UnlearnConfig, "jobs/configs/quickstart.yaml")
    assert (base.storage, base.seed, base.optim.lr, base.evaluate.every, base.tracking.model_name) == (
        "/nowhere",
        5,
        0.5,
        4,
        "other",
    )
    assert base.train.workers == 1 and base.request == quickstart.request and base.method == quickstart.method
    assert base.evaluate.samples == 100  # what the sweep itself sets stays, beside what the command line adds
    changed = configured(base, {"method.penalty": 0.0, "trainable": "all", "method.name": "uno"})
    assert (changed.method.own, changed.trainable, changed.method.name) == ({"penalty": 0.0}, "all", "uno")
    assert changed.model_copy(update={"method": base.method, "trainable": base.trainable}) == base


def test_the_budget_of_a_trial_bounds_its_seconds() -> None:
    assert base_config(sweep("budget.trial_seconds=3", "budget.seconds=30")).optim.max_seconds == 3
    for wrong, message in (
        ("budget.seconds=2", "without budget.trial_seconds"),
        ("budget={seconds: 2, trial_seconds: 3}", "less than one trial"),
    ):
        with pytest.raises(InputError, match=message):
            sweep(wrong)
    with pytest.raises(InputError, match=r"budget\.trials: got 0"):
        sweep("budget.trials=0")


def test_zero_is_an_eighth_of_its_axis() -> None:
    import math

    distribution = parse(
        SweepConfig, {"storage": "/x", "space": {"method.penalty": {"loguniform": [1e-4, 1], "zero": True}}}
    ).space["method.penalty"]
    low = below_zero(distribution)
    assert math.log(1e-4 / low) / math.log(1 / low) == pytest.approx(1 / 8)
    assert holds(distribution, 0) and holds(distribution, 1e-4) and not holds(distribution, 5e-5)
    assert not holds(Distribution(loguniform=(1e-4, 1)), 0)


def test_a_trials_share_of_a_gpu_is_what_its_configuration_says() -> None:
    train = base_config(sweep("trial={runner: inline, cpus: 0.5, gpus: 0.25}")).train
    assert (train.workers, train.cpus_per_worker, train.gpus_per_worker) == (1, 0.5, 0.25)
    assert (
        base_config(
            sweep("trial={runner: trainer}", "set.train={workers: 2, gpus_per_worker: 1}")
        ).train.workers
        == 2
    )


def test_the_imagenet_sweep_fits_the_configuration_it_starts_from() -> None:
    config = load(SweepConfig, "jobs/configs/sweep_imagenet.yaml", ["storage=/nowhere"])
    if not (ROOT / config.base).exists():
        pytest.skip(f"{config.base} is not there")
    base = base_config(config)
    check_space(config.space, base)
    check_objectives(config.search.objectives, base)
    assert config.trial.runner == "trainer" and base.train.gpus_per_worker > 0
    assert [configured(base, point) for point in fixed_points(config.space, base)][:1] in ([base], [])


def test_a_trial_takes_the_settings_that_its_method_has() -> None:
    config = sweep("space={method.name: {choice: [surgery, esd]}, method.eta: {uniform: [1, 5]}}")
    base = base_config(config)
    check_space(config.space, base)
    assert fixed_points(config.space, base) == []  # uno_s is none of the choices, and has no eta
    assert configured(base, {"method.name": "esd", "method.eta": 2.0}).method.own["eta"] == 2.0
    assert configured(base, {"method.name": "surgery", "method.eta": 2.0}).method.own == {}
