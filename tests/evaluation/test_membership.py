"""The loss attack that decides whether named samples were memorised, and whether they still are."""

import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from pipeline.evaluation.metrics.membership import attack


def losses(n: int, mean: float, seed: int) -> list[float]:
    return (
        mean + torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ).tolist()


@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0, -1.0])
def test_auc_is_the_area_under_the_roc_curve(shift: float) -> None:
    ours, others = losses(40, 0.0, 0), losses(70, shift, 1)
    found = attack(ours, others)
    assert found["auc"] == pytest.approx(
        roc_auc_score([1] * 40 + [0] * 70, [-loss for loss in ours + others]), abs=1e-12
    )
    assert found["low"] <= found["auc"] <= found["high"] and (found["n"], found["heldout_n"]) == (40, 70)
    assert (found["loss_forget"], found["loss_heldout"]) == pytest.approx((sum(ours) / 40, sum(others) / 70))


def test_interval_is_hanleys_and_mcneils() -> None:
    found = attack(losses(50, 0.0, 0), losses(80, 1.0, 1))
    for end in (found["low"], found["high"]):
        q1, q2 = end / (2 - end), 2 * end**2 / (1 + end)
        # Newcombe's method takes the mean of both group sizes for either
        n = (50 + 80) / 2 - 1
        deviation = math.sqrt((end * (1 - end) + n * (q1 + q2 - 2 * end * end)) / (50 * 80))
        assert abs(found["auc"] - end) == pytest.approx(1.96 * deviation, abs=1e-4)


def test_few_rows_say_little() -> None:
    one = attack([0.0], [1.0])
    assert one["auc"] == one["high"] == 1.0 and one["low"] == pytest.approx(1 / (1 + 1.959963984540054**2))
    assert not one["memorised"]
    assert attack([1.0], [0.0])["low"] == 0.0 and attack([1.0], [0.0])["high"] == pytest.approx(
        1 - one["low"]
    )


@pytest.mark.parametrize(
    ("ours", "others"), [([math.nan], [1.0]), ([1.0, 2.0], [math.nan, 1.0]), ([1.0], [math.inf])]
)
def test_what_is_no_number_is_no_attack(ours: list[float], others: list[float]) -> None:
    with pytest.raises(ValueError, match="losses are NaN"):
        attack(ours, others)


def test_equal_losses_are_a_coin_toss() -> None:
    found = attack([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert found["auc"] == 0.5 and not found["memorised"]
    assert attack([1.0] * 5, [1.0] * 5)["auc"] == 0.5


def test_memorised_means_better_than_chance_beyond_doubt() -> None:
    assert attack(losses(60, 0.0, 0), losses(60, 2.0, 1))["memorised"]
    assert not attack(losses(60, 0.0, 0), losses(60, 0.0, 1))["memorised"]
    few = attack(losses(4, 0.0, 0), losses(4, 0.6, 1))
    assert few["low"] <= 0.5 and few["memorised"] is False


def test_true_positives_at_one_percent_false_ones() -> None:
    others = [float(k) for k in range(200)]
    # two of 200 lie below the third of them
    assert attack([-1.0, 0.5, 1.5, 2.5], others)["tpr_at_1_fpr"] == 0.75


@pytest.mark.parametrize(("ours", "others"), [([], [1.0]), ([1.0], [])])
def test_both_sides_are_needed(ours: list[float], others: list[float]) -> None:
    with pytest.raises(ValueError, match="expected some of both"):
        attack(ours, others)
