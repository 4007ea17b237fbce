"""What of the attack suite is on by default, and what is refused."""

from typing import Any

import pytest
import yaml

from pipeline.config import UnlearnConfig, dump, parse_given, parse_stored
from pipeline.config.evaluate import EvaluateConfig
from pipeline.errors import InputError
from pipeline.evaluation.attacks.table import attempts_of
from pipeline.runs.request_checks import with_own_settings


def deep(**sections: dict[str, Any]) -> UnlearnConfig:
    values = {
        "model": {"size": "DiT-tiny"},
        "request": {"classes": [1], "exchange": {1: 7}},
        "method": {"depth": "weights"},
        "evaluate": {"reference": "dit-tiny-digits-without-1"},
    }
    return parse_given(UnlearnConfig, {**values, **sections})


def test_depth_weights_with_a_reference_is_attacked_and_held_to_it() -> None:
    config = deep()
    assert config.evaluate.attack_suite is True and config.gate.max_recall_excess == 0.1
    assert deep(gate={"max_recall_excess": None}).gate.max_recall_excess is None
    assert deep(gate={"max_recall_excess": 0.3}).gate.max_recall_excess == 0.3
    alone = deep(evaluate={})
    assert alone.evaluate.attack_suite is False and alone.gate.max_recall_excess is None
    assert deep(method={"depth": "label"}).gate.max_recall_excess is None
    assert with_own_settings(parse_stored(UnlearnConfig, yaml.safe_load(dump(config)))) == with_own_settings(
        config
    )


def test_a_quick_suite_is_one_search_of_ten_times_the_adversarys_rows() -> None:
    reference = {"reference": "dit-tiny-digits-without-1", "attack_suite": "quick"}
    config = deep(evaluate=reference)
    assert list(attempts_of(config.attacks, config.measuring)) == ["none", "embedding from mean"]
    steps = min(config.redirection.restart_every, config.optim.max_steps)
    adversary = steps * config.redirection.rows / config.redirection.pool
    assert config.attacks.embedding_steps * config.attacks.embedding_batch >= 10 * adversary
    assert deep(evaluate=reference, attacks={"samples": 300}).attacks.samples == 300
    evaluation = parse_given(EvaluateConfig, {"attack_suite": "quick", "attacks": {"embedding_lr": 0.1}})
    assert evaluation.attacks.only == ["none", "embedding"] and evaluation.attacks.embedding_lr == [0.1]
    again = parse_stored(UnlearnConfig, yaml.safe_load(dump(config)))
    assert again.attacks.model_dump() == config.attacks.model_dump()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"evaluate": {"reference": "x", "attack_suite": False}},
            "gate.max_recall_excess: got 0.1 without attacks; expected evaluate.attack_suite=true or quick",
        ),
        (
            {"attacks": {"embedding_steps": 50}},
            "attacks.embedding_steps: got 50 of 64 rows, 3200 for an embedding, where the training's"
            " adversary has 800; expected 10 times as many at least, 125 steps",
        ),
        ({"evaluate": {"second_judge": "svm"}}, "evaluate.second_judge: got it while evaluate.attack_suite"),
        ({"evaluate": {"attack_suite": "slow"}}, "evaluate.attack_suite: got 'slow'"),
        ({"attacks": {"embedding_starts": []}}, "attacks.embedding_starts"),
    ],
)
def test_attacks_that_say_nothing_are_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        deep(**sections)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_attack_that_there_is_not_is_refused() -> None:
    config = deep(attacks={"only": ["none", "hammer"]})
    with pytest.raises(InputError, match=r"attacks\.only: got 'hammer', expected some of none, finetune"):
        attempts_of(config.attacks, config.measuring)
