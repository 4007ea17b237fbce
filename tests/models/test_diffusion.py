"""The diffusion against textbook formulas, one row at a time in float64."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from tiny import SIDE, tiny_dit
from torch import Tensor

from models.diffusion import Anchor, Noise, Prediction, SamplerSettings, gaussian
from models.diffusion.prediction import variational_bound

T = [0, 0, 1, 250, 999]


def cosine_betas(steps: int) -> np.ndarray:
    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - f((i + 1) / steps) / f(i / steps), 0.999) for i in range(steps)])


def images(n: int, seed: int) -> Tensor:
    """x0 in [-1, 1] with black and white pixels among them, where the likelihood has its open ends."""
    x = (
        torch.rand((n, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
        - 1
    )
    x[:, :, 0, 0], x[:, :, 0, 1] = -1, 1
    return x


def noise_for(x: Tensor, t: list[int], seed: int) -> Noise:
    return Noise(
        t=torch.tensor(t),
        eps=torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype),
    )


@pytest.mark.parametrize(
    ("schedule", "betas"), [("linear", np.linspace(1e-4, 0.02, 1000)), ("cosine", cosine_betas(1000))]
)
def test_schedules_are_the_textbook_ones(schedule: str, betas: np.ndarray) -> None:
    d = gaussian(schedule)
    np.testing.assert_allclose(d.path.betas.numpy(), betas, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(d.path.alpha_bar.numpy(), np.cumprod(1 - betas), rtol=1e-6)
    with pytest.raises(ValueError, match="linear or cosine"):
        gaussian("quadratic")


@pytest.mark.parametrize("seed", [0, 1])
def test_noised_image_and_its_inverse(seed: int) -> None:
    d, x = gaussian("cosine"), images(5, seed)
    noise = noise_for(x, T, seed)
    x_t = d.noised(x, noise)
    abar = np.cumprod(1 - cosine_betas(1000))
    for i, t in enumerate(T):
        wanted = math.sqrt(abar[t]) * x[i].numpy() + math.sqrt(1 - abar[t]) * noise.eps[i].numpy()
        np.testing.assert_allclose(x_t[i].numpy(), wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(d.path.x0_from_eps(x_t, noise.t, noise.eps)[:4], x[:4], atol=1e-9, rtol=0)


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_equals_a_naive_loop(learn_sigma: bool, seed: int) -> None:
    model = tiny_dit(learn_sigma=learn_sigma, seed=seed)
    x, y = images(5, seed), torch.tensor([0, 1, 2, 3, 4])
    noise = noise_for(x, T, seed)
    got = model.losses(model.net, x, y, noise).detach().numpy()
    wanted = [naive_loss(model.net, x[i], int(y[i]), T[i], noise.eps[i], learn_sigma) for i in range(5)]
    np.testing.assert_allclose(got, wanted, rtol=1e-7)


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_of_an_answer_in_bfloat16_the_loss_is_taken_in_float32(learn_sigma: bool) -> None:
    model = tiny_dit(dtype=torch.float32, learn_sigma=learn_sigma)
    x0 = images(4, 1).float()
    noise, y = noise_for(x0, [0, 3, 500, 999], 2), torch.tensor([0, 1, 2, 3])

    def net(*inputs: Tensor) -> Tensor:
        return model.net(*inputs).bfloat16()

    def widened(*inputs: Tensor) -> Tensor:
        return net(*inputs).float()

    losses = model.losses(net, x0, y, noise)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, model.losses(widened, x0, y, noise))


def test_likelihood_of_pixels_is_that_of_the_exact_normal_distribution() -> None:
    """The tanh form of the normal CDF is an approximation: good to about a percent of a bit here."""
    d, x = gaussian("linear", learn_sigma=True), images(1, 5)
    noise = noise_for(x, [0], 5)
    x_t = d.noised(x, noise)
    eps, v = noise.eps + 0.1, torch.full_like(x, 0.3)
    got = variational_bound(d.path, x, x_t, noise.t, eps, v).item()
    mean = d.path.x0_from_eps(x_t, noise.t, eps).numpy()  # at t = 0 the posterior mean is the estimate of x0
    betas = np.linspace(1e-4, 0.02, 1000)
    deviation = math.exp(0.5 * (0.65 * math.log(betas[0]) + 0.35 * math.log(tilde(betas)[1])))
    above, below = (scipy.stats.norm.cdf((x.numpy() - mean + side / 255) / deviation) for side in (1, -1))
    above, below = np.where(x.numpy() > 0.999, 1.0, above), np.where(x.numpy() < -0.999, 0.0, below)
    assert abs(got - (-np.log2(np.clip(above - below, 1e-12, None))).mean()) < 0.02


def test_variational_term_trains_the_variance_alone() -> None:
    d, x = gaussian("cosine", learn_sigma=True), images(3, 0)
    noise = noise_for(x, [0, 10, 700], 1)
    out = torch.randn(
        3, 2, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    ).requires_grad_()
    (gradient,) = torch.autograd.grad(d.losses(lambda *_: out, x, torch.zeros(3), noise).sum(), out)
    torch.testing.assert_close(gradient[:, :1], 2 * (out[:, :1] - noise.eps) / SIDE**2)
    assert gradient[:, 1:].abs().min() > 0


def test_anchor_holds_what_the_variational_term_sees_of_eps() -> None:
    """Finite differences move the parameters; the constant in the variational term has to
    stay where it was."""
    d, x = gaussian("cosine", learn_sigma=True), images(2, 0)
    noise = noise_for(x, [3, 500], 1)
    base = torch.randn(2, 2, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    moved = base.clone()
    moved[:, :1] += 0.1
    y, anchor = torch.zeros(2), Anchor()
    first = d.losses(lambda *_: base, x, y, noise, anchor=anchor)
    assert torch.equal(first, d.losses(lambda *_: base, x, y, noise))
    error = (moved[:, :1] - noise.eps).square().flatten(1).mean(1) - (
        base[:, :1] - noise.eps
    ).square().flatten(1).mean(1)
    torch.testing.assert_close(d.losses(lambda *_: moved, x, y, noise, anchor=anchor) - first, error)
    assert (d.losses(lambda *_: moved, x, y, noise) - first - error).abs().min() > 1e-6


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_targets_replace_the_noise(learn_sigma: bool) -> None:
    student, teacher = tiny_dit(learn_sigma=learn_sigma, seed=0), tiny_dit(learn_sigma=learn_sigma, seed=1)
    x, y = images(4, 0), torch.tensor([0, 1, 2, 3])
    noise = noise_for(x, [0, 5, 500, 999], 0)
    with torch.no_grad():
        target = teacher.predict(teacher.net, x, y, noise)
        got = student.predict(student.net, x, y, noise)
        wanted = (got.value - target.value).square().mean((1, 2, 3))
        if got.variance is not None and target.variance is not None:
            wanted = wanted + (got.variance - target.variance).square().mean((1, 2, 3))
        torch.testing.assert_close(student.losses(student.net, x, y, noise, target=target), wanted)
        assert student.losses(student.net, x, y, noise, target=Prediction(got.value, got.variance)).max() == 0


@pytest.mark.parametrize(("scale", "clip"), [(1.0, True), (2.0, True), (2.0, False), (0.0, True)])
def test_ddim_with_guidance_equals_a_naive_loop(scale: float, clip: bool) -> None:
    model = tiny_dit(seed=2)
    start = torch.randn(3, 1, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 3, 1])
    got = model.diffusion.sample(
        model.net,
        start,
        y,
        SamplerSettings(cfg_scale=scale, steps=7),
        null_label=model.null_label,
        clip=clip,
    )
    for i in range(3):
        wanted = naive_ddim(model.net, start[i], int(y[i]), model.null_label, scale, 7, clip)
        np.testing.assert_allclose(got[i].numpy(), wanted.numpy(), rtol=1e-8, atol=1e-8)


def test_an_image_is_the_same_in_any_batch() -> None:
    model = tiny_dit(dtype=torch.float32, seed=3)
    labels, seeds = torch.tensor([0, 1, 2, 3, 1]), [11, 12, 13, 14, 12]
    together = model.sample(labels=labels, seeds=seeds, cfg_scale=2.0, steps=5)
    for k in range(5):
        alone = model.sample(labels=labels[k : k + 1], seeds=seeds[k : k + 1], cfg_scale=2.0, steps=5)
        torch.testing.assert_close(alone[0], together[k], atol=1e-5, rtol=0)
    torch.testing.assert_close(together[1], together[4], atol=1e-6, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.01


def test_one_row_of_noise_is_a_function_of_its_generator() -> None:
    d = gaussian("cosine", timesteps=50)
    first, second = (
        d.sample_noise((1, SIDE, SIDE), torch.Generator().manual_seed(9), latent=True) for _ in range(2)
    )
    assert first.t == second.t and torch.equal(first.eps, second.eps)
    assert (
        first.posterior is not None
        and second.posterior is not None
        and torch.equal(first.posterior, second.posterior)
    )
    assert d.sample_noise((1, SIDE, SIDE), torch.Generator().manual_seed(9), latent=False).posterior is None
    times = {
        int(d.sample_noise((1, 1, 1), torch.Generator().manual_seed(k), latent=False).t) for k in range(500)
    }
    assert min(times) == 0 and max(times) == 49 and len(times) == 50


def tilde(betas: np.ndarray) -> np.ndarray:
    """DDPM eq. 7."""
    abar = np.cumprod(1 - betas)
    return np.array([betas[t] * (1 - (abar[t - 1] if t else 1)) / (1 - abar[t]) for t in range(len(betas))])


def naive_loss(
    net: Callable[..., Tensor], x0: Tensor, y: int, t: int, eps: Tensor, learn_sigma: bool
) -> float:
    """One row: mean squared error, and the bound of Nichol & Dhariwal (2021) from two explicit Gaussians."""
    betas = cosine_betas(1000)
    abar = np.cumprod(1 - betas)
    x, e = x0.numpy(), eps.numpy()
    x_t = math.sqrt(abar[t]) * x + math.sqrt(1 - abar[t]) * e
    with torch.no_grad():
        out = net(torch.from_numpy(x_t)[None], torch.tensor([t]), torch.tensor([y]))[0].numpy()
    loss = ((out[:1] - e) ** 2).mean()
    if not learn_sigma:
        return loss
    before = abar[t - 1] if t else 1.0
    guess = (x_t - math.sqrt(1 - abar[t]) * out[:1]) / math.sqrt(abar[t])

    def posterior_mean(x_0: np.ndarray) -> np.ndarray:
        return (betas[t] * math.sqrt(before) * x_0 + (1 - before) * math.sqrt(1 - betas[t]) * x_t) / (
            1 - abar[t]
        )

    low = tilde(betas)[max(t, 1)]  # the variance is 0 at t = 0, so the next one is taken
    share = (out[1:] + 1) / 2
    variance = np.exp(share * math.log(betas[t]) + (1 - share) * math.log(low))
    if t:  # KL(N(m1, s1) || N(m2, s2))
        difference = posterior_mean(x) - posterior_mean(guess)
        nats = np.log(np.sqrt(variance) / math.sqrt(low)) + (low + difference**2) / (2 * variance) - 0.5
    else:

        def cdf(z: np.ndarray) -> np.ndarray:
            return 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

        deviation = np.sqrt(variance)
        upper = np.where(x > 0.999, 1.0, cdf((x - guess + 1 / 255) / deviation))
        lower = np.where(x < -0.999, 0.0, cdf((x - guess - 1 / 255) / deviation))
        nats = -np.log(np.clip(upper - lower, 1e-12, None))
    return loss + (nats / math.log(2)).mean()


@torch.no_grad()
def naive_ddim(
    net: Callable[..., Tensor], x: Tensor, y: int, null: int, scale: float, steps: int, clip: bool
) -> Tensor:
    """One image: eps of both labels in passes of their own, then eq. 12 of Song et al. (2021) with eta 0."""
    abar = np.cumprod(1 - cosine_betas(1000))
    times = [round(u) for u in np.linspace(999, 0, steps)]
    for index, t in enumerate(times):
        ask = [net(x[None], torch.tensor([t]), torch.tensor([label]))[0] for label in (y, null)]
        eps = ask[1] + scale * (ask[0] - ask[1])
        x0 = (x - math.sqrt(1 - abar[t]) * eps) / math.sqrt(abar[t])
        if clip:
            x0 = x0.clamp(-1, 1)
            eps = (x - math.sqrt(abar[t]) * x0) / math.sqrt(1 - abar[t])
        following = abar[times[index + 1]] if index + 1 < steps else 1.0
        x = math.sqrt(following) * x0 + math.sqrt(1 - following) * eps
    return x


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_a_loss_never_waits_for_the_device(learn_sigma: bool) -> None:
    """On the meta device there are no values to wait for: whatever reads one on the host fails there."""
    d = gaussian("cosine", learn_sigma=learn_sigma)
    x = torch.empty((4, 1, SIDE, SIDE), device="meta")
    y = t = torch.zeros(4, dtype=torch.long, device="meta")
    v = torch.empty_like(x) if learn_sigma else None

    def net(x_t: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert x_t.device == t.device == y.device
        return torch.cat([x_t, x_t], dim=1) if learn_sigma else x_t

    for target in (None, Prediction(x, v)):
        loss = d.losses(net, x, y, Noise(t=t, eps=x), target=target)
        assert loss.shape == (4,) and loss.device.type == "meta"
    with pytest.raises((NotImplementedError, RuntimeError)):
        t.tolist()  # what a read on the host would do
