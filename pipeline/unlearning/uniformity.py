"""The uniformity loss (the paper's hat term): a judge pulls the mean prediction on the model's own samples
towards the classes that are kept.

n samples on a rank, K classes. KL(p || u), p (K,) the judge's mean softmax over the global batch of samples,
u (K,) uniform over the retained classes. KL is not linear in the ranks' parts: p is averaged over ranks
inside the graph, which keeps first and second derivatives exact.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.generative import GenerativeModel
from models.judge import Judge
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.noising import sample_latents

# the published constant: a class without probability, wanted or found, keeps the logarithm finite
TINY = 1e-8


def uniformity(probabilities: Tensor, retained: Sequence[int]) -> Tensor:
    """KL(p || uniform over `retained`) of mean probabilities (classes,), ()."""
    target = torch.zeros_like(probabilities)
    target[list(retained)] = 1 / len(retained)
    return (probabilities * ((probabilities + TINY) / (target + TINY)).log()).sum()


def uniformity_loss(
    model: GenerativeModel, judge: Judge, latents: Tensor, retained: Sequence[int], collectives: Collectives
) -> Callable[[], Tensor]:
    """The term as a closure over this rank's `latents` (n, *latent), as many on every rank. Collective: all
    ranks call it together."""

    def loss() -> Tensor:
        mean = judge.logits(model.decode(latents)).softmax(dim=1).mean(0)
        return uniformity(collectives.mean_in_graph(mean), retained)

    return loss


def sampled_uniformity_loss(
    model: GenerativeModel,
    judge: Judge,
    *,
    weight: float,
    retained: Sequence[int],
    rows: int,
    seed: int,
    step: int,
    collectives: Collectives,
    device: torch.device,
) -> Callable[[], Tensor]:
    """The weighted term of step `step` on fresh samples, on each rank as many as it has `rows`."""
    first = collectives.rank * rows
    latents = sample_latents(model, range(first, first + rows), seed=seed, step=step).to(device)
    loss = uniformity_loss(model, judge, latents, retained, collectives)
    return lambda: weight * loss()
