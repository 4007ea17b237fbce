"""The divergence of losses from those of retrained references, against torch's own and by its properties."""

import pytest
import torch

from pipeline.evaluation.behaviour_distance import as_losses, behaviour_distance, floor


def losses(
    models: int, *, mean: float = 0.0, deviation: float = 1.0, rows: int = 50, seed: int = 0
) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    level = torch.rand(50, generator=g, dtype=torch.float64)  # rows differ, models differ around them
    return level + mean + deviation * torch.randn(models, 50, generator=g, dtype=torch.float64)


def test_it_is_the_divergence_of_two_normal_distributions() -> None:
    ours, theirs = losses(4, mean=0.7, deviation=0.5), losses(6, seed=1)
    deviations = [one.var(0).mean().sqrt() for one in (ours, theirs)]
    p, q = (
        torch.distributions.Normal(one.mean(0), deviation)
        for one, deviation in zip((ours, theirs), deviations, strict=True)
    )
    wanted = torch.distributions.kl_divergence(p, q).mean().item()
    assert behaviour_distance(ours, theirs) == pytest.approx(wanted, rel=1e-12)


def test_models_like_the_references_are_near_and_others_far() -> None:
    references = losses(20)
    near, far = (behaviour_distance(losses(20, mean=m), references) for m in (0.0, 3.0))
    assert near is not None and far is not None and 0 <= near < 0.2 < 3 < far
    alone = behaviour_distance(references[:1] + 3.0, references)
    assert alone is not None and alone > 3


def test_a_further_reference_is_the_least_there_is_to_expect() -> None:
    references = losses(20)
    least = floor(references)
    # a model alone differs from the mean of n others by its own deviation and theirs
    assert least is not None and least == pytest.approx(0.5 * (1 + 1 / 19), rel=0.1)
    assert floor(references[:2]) is None


def test_one_reference_has_no_distribution() -> None:
    assert behaviour_distance(losses(3), losses(1)) is None
    assert behaviour_distance(losses(3), as_losses([[1.0, 2.0]] * 3)) is None, "references that are all alike"
