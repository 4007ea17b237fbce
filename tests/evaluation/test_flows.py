"""What an evaluation does at timesteps, on models whose time is continuous."""

import pytest
import torch
from contexts import FEW, tiny_context, tiny_model

from models.diffusion.time import Continuous, Discrete
from pipeline.evaluation.attacks.ancestral import with_ancestral_sampler
from pipeline.evaluation.attacks.timestep_embedding import ByTimestep
from pipeline.evaluation.metrics.timestep_loss import timestep_losses
from pipeline.evaluation.partials import Shard


@pytest.mark.parametrize("family", ["sit", "repa"])
def test_losses_of_every_stretch_of_time(family: str) -> None:
    context = tiny_context(family=family)
    whole = timestep_losses(context, Shard())
    halves = [timestep_losses(context, Shard(rank, 2)) for rank in range(2)]
    assert len(whole) == 2 * 4 * FEW.timestep_bins
    for name, sums in whole.items():
        assert torch.allclose(sum(half[name] for half in halves if name in half), sums)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["sit", "repa"])
def test_the_stochastic_sampler_depends_on_label_and_seed_alone(family: str) -> None:
    model = with_ancestral_sampler(tiny_model(family=family))
    together = model.sample(labels=torch.tensor([0, 1]), seeds=[3, 4], cfg_scale=2.0, steps=4)
    alone = model.sample(labels=torch.tensor([1]), seeds=[4], cfg_scale=2.0, steps=4)
    own = tiny_model(family=family).sample(labels=torch.tensor([1]), seeds=[4], cfg_scale=2.0, steps=4)
    assert torch.allclose(together[1], alone[0], atol=1e-5) and not torch.allclose(alone, own, atol=1e-2)


def test_an_embedding_for_each_stretch_of_time_serves_where_it_lies() -> None:
    """Data first, whichever end of the model's time it has."""
    for family, times in (("sit", [0.99, 0.01]), ("repa", [0.01, 0.99])):
        model = tiny_model(family=family)
        net = ByTimestep(model, [1], 4)
        with torch.no_grad():
            net.embeddings[0, 0] += 1.0
        x, y, t = torch.zeros(2, 1, 4, 4), torch.tensor([1, 1]), torch.tensor(times)
        moved = (net(x, t, y) - model.net(x, t, y)).flatten(1).abs().amax(1)
        assert moved[0] > 1e-3 and moved[1] == 0


def test_buckets_and_stretches_of_both_kinds_of_time() -> None:
    t = torch.tensor([0, 249, 250, 999])
    assert Discrete(1000).bucket(t, 4).tolist() == [0, 0, 1, 3]
    assert Discrete(1000).within(t, 500, 600).tolist() == [500, 524, 525, 599]
    for time in (Continuous(data_at=0), Continuous(data_at=1)):
        u = time.level(torch.tensor([0.0, 0.2, 0.3, 1.0]))
        assert time.bucket(u, torch.tensor([4, 4, 4, 4])).tolist() == [0, 0, 1, 3]
        levels = time.level(time.within(u, 500, 600))
        assert torch.allclose(levels, torch.tensor([0.5, 0.52, 0.53, 0.6]))
