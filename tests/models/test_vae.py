"""The paper's VAEs: published names and sizes, the ELBO against its formula, samples by seed, batch norm as
it is set."""

import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.diffusion import Noise, Prediction
from models.generative import build, describe
from models.vae import VAEModel, describe_state, vae_description
from models.weights import WeightsError, load_into, read_file
from pipeline.seeding import generator

PUBLISHED = [
    *(f"encoder.0.{name}" for name in ("weight", "bias")),
    *(
        f"encoder.1.{name}"
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ),
    *(f"enc_log_sigma.{name}" for name in ("weight", "bias")),
    *(f"enc_mu.{name}" for name in ("weight", "bias")),
    *(f"decoder.0.{name}" for name in ("weight", "bias")),
    *(
        f"decoder.1.{name}"
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ),
    *(f"decoder.3.{name}" for name in ("weight", "bias")),
]


def tiny(kind: str, statistics: str = "running") -> VAEModel:
    """A VAE of either architecture on small images, every number sampled, running statistics included."""
    size, architecture = {
        "mlp": ("vae-mnist", {"input_size": 4, "widths": [6], "num_classes": 4}),
        "conv": ("vae-celeba", {"input_size": 8, "widths": [3, 4], "latent": 5}),
    }[kind]
    model = build({"family": "vae", "size": size, "architecture": architecture}, batch_norm=statistics)
    assert isinstance(model, VAEModel)
    g = generator(0, kind)
    with torch.no_grad():
        for tensor in model.net.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.3, 1.0, generator=g)
        for parameter in model.net.parameters():
            parameter.normal_(std=0.5, generator=g)
    model.net.double()
    return model


def rows(model: VAEModel, n: int) -> tuple[Tensor, Tensor, Noise]:
    g = generator(1, "rows")
    x0 = torch.rand((n, *model.shape), generator=g, dtype=torch.float64) * 2 - 1
    assert model.latent is not None
    noise = Noise(
        t=torch.zeros(n, dtype=torch.int64),
        eps=torch.randn((n, *model.latent), generator=g, dtype=torch.float64),
    )
    return x0, torch.zeros(n, dtype=torch.int64), noise


def test_the_published_names_and_sizes() -> None:
    digits = build(describe("vae-mnist", shape=(1, 28, 28), class_names=[str(i) for i in range(10)]))
    assert list(digits.net.state_dict()) == PUBLISHED
    assert sum(p.numel() for p in digits.net.parameters()) == 632_788
    faces = build(describe("vae-celeba", shape=(3, 64, 64), class_names=["not Male", "Male"]))
    assert sum(p.numel() for p in faces.net.parameters()) == 8_742_659
    assert faces.latent == (512,) and faces.num_classes == 2 and not faces.conditional


def test_the_published_checkpoint_loads_and_samples_digits() -> None:
    root = os.environ.get("UNLEARN_TEST_DATA")
    if not root:
        pytest.skip("UNLEARN_TEST_DATA is not set")
    from models.judge import build_judge, describe_mlp

    path = Path(root) / "uno-paper" / "mnist_vae_200.pth"
    state = read_file(path, str(path))
    described = describe_state(state)
    assert described is not None and described["size"] == "vae-mnist"
    model = build(described)
    load_into(model.net, state, str(path))
    judge_state = read_file(Path(root) / "uno-paper" / "mnist_classifier.safetensors", "judge")
    judge = build_judge(describe_mlp(judge_state))
    load_into(judge.net, judge_state, "judge")
    model.net.eval()
    x = model.sample(labels=torch.zeros(2000, dtype=torch.int64), seeds=range(2000), cfg_scale=1.0, steps=1)
    shares = torch.bincount(judge.logits(x).argmax(1), minlength=10) / 2000
    assert x.shape == (2000, 1, 28, 28) and 0.06 < shares[1] < 0.12 and shares.min() > 0.01


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_the_loss_is_the_negative_elbo_of_each_row(kind: str) -> None:
    model = tiny(kind)
    model.net.train()
    x0, y, noise = rows(model, 5)
    got = model.losses(model.net, x0, y, noise)
    for i in range(5):
        mean, log_variance = (v[0] for v in model.vae.encode(x0[i : i + 1]))
        kl = sum(0.5 * (math.exp(s) + m * m - 1 - s) for m, s in zip(mean.tolist(), log_variance.tolist()))
        out = model.decode((mean + (0.5 * log_variance).exp() * noise.eps[i]).unsqueeze(0))[0]
        if kind == "mlp":
            p, wanted = (out + 1) / 2, (x0[i] + 1) / 2
            error = -(wanted * p.log() + (1 - wanted) * (1 - p).log()).sum()
        else:
            error = ((out - x0[i]) ** 2).sum()
        assert got[i].item() == pytest.approx(error.item() + kl, rel=1e-9)


def test_beta_weighs_the_divergence_and_a_target_stands_in_for_the_pixels() -> None:
    model = tiny("mlp")
    x0, y, noise = rows(model, 3)
    one = model.losses(model.net, x0, y, noise)
    three = build({**model.config, "architecture": {**model.config["architecture"], "beta": 3.0}})
    load_into(three.net.double(), model.net.state_dict(), "beta")
    _, mean, log_variance = model.net(x0, noise.eps)
    kl = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(1)
    assert torch.allclose(three.losses(three.net, x0, y, noise), one + 2 * kl, rtol=1e-12)
    own = model.predict(model.net, x0, y, noise)
    assert own.value.shape == x0.shape and own.value.abs().max() <= 1
    assert torch.equal(model.losses(model.net, x0, y, noise, target=Prediction(x0, None)), one)
    assert not torch.allclose(model.losses(model.net, x0, y, noise, target=own), one)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_a_sample_depends_on_its_seed_alone(kind: str) -> None:
    model = tiny(kind)
    model.net.eval()
    labels = torch.tensor([0, 1, 0])
    x = model.sample(labels=labels, seeds=[7, 8, 7], cfg_scale=1.0, steps=1)
    assert x.shape == (3, *model.shape) and torch.equal(x[0], x[2]) and not torch.equal(x[0], x[1])
    # it reads no label, has no sampler
    assert torch.equal(x, model.sample(labels=1 - labels, seeds=[7, 8, 7], cfg_scale=9.0, steps=20))
    assert x.abs().max() <= 1


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_stored_statistics_make_a_row_its_own(kind: str) -> None:
    model = tiny(kind)
    model.net.train()
    before = {name: value.clone() for name, value in model.net.named_buffers()}
    x0, y, noise = rows(model, 6)
    whole = model.losses(model.net, x0, y, noise)
    parts = [
        model.losses(
            model.net, x0[i : i + 2], y[i : i + 2], Noise(t=noise.t[i : i + 2], eps=noise.eps[i : i + 2])
        )
        for i in (0, 2, 4)
    ]
    assert torch.allclose(whole, torch.cat(parts), rtol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in model.net.named_buffers())
    assert not model.whole_batch


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_batch_statistics_are_the_batchs_and_only_tracking_moves_the_stored_ones(kind: str) -> None:
    x0, y, noise = rows(tiny(kind), 6)
    moved = {}
    for statistics in ("batch", "tracked"):
        model = tiny(kind, statistics)
        model.net.train()
        assert model.whole_batch
        before = {name: buffer.clone() for name, buffer in model.net.named_buffers()}
        loss = model.losses(model.net, x0, y, noise)
        half = model.losses(model.net, x0[:3], y[:3], Noise(t=noise.t[:3], eps=noise.eps[:3]))
        assert not torch.allclose(loss[:3], half)  # another batch, other statistics
        moved[statistics] = {
            name.rpartition(".")[2]
            for name, buffer in model.net.named_buffers()
            if not torch.equal(buffer, before[name])
        }
        model.net.eval()
        stored = tiny(kind)
        if statistics == "batch":
            stored.net.eval()
            assert torch.equal(model.losses(model.net, x0, y, noise), stored.losses(stored.net, x0, y, noise))
    assert moved == {"batch": set(), "tracked": {"running_mean", "running_var", "num_batches_tracked"}}


def test_an_explicit_batch_norm_is_the_formula() -> None:
    model = tiny("mlp", "batch")
    model.net.train()
    x0, _, _ = rows(model, 6)
    linear, norm, _ = model.vae.get_submodule("encoder").children()
    h = linear((x0.flatten(1) + 1) / 2)
    wanted = (h - h.mean(0)) / (h.var(0, unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias
    assert torch.allclose(
        model.vae.get_submodule("encoder")((x0.flatten(1) + 1) / 2), wanted.relu(), rtol=1e-10
    )


def test_noise_is_the_latents_and_trainable_parts_are_named() -> None:
    model = tiny("conv")
    drawn = model.sample_noise(generator(3), latent=False)
    assert drawn.eps.shape == (5,) and drawn.posterior is None
    names = [name for name, _ in model.net.named_parameters()]
    groups = {
        group: [n for n in names if n.startswith(tuple(prefixes(0)))]
        for group, prefixes in model.trainable_groups().items()
    }
    assert groups["all"] == names
    assert sorted(groups["decoder"] + groups["encoder"]) == sorted(names)
    assert all("decoder" in n or "final_layer" in n for n in groups["decoder"])
    assert model.label_table() is None


def test_wrong_sizes_shapes_and_architectures_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"vae-celeba is for images of shape \(3, 64, 64\), got \(3, 32, 32\)"
    ):
        describe("vae-celeba", shape=(3, 32, 32), class_names=["a", "b"])
    with pytest.raises(ValueError, match="got 12 pixels, expected a multiple of 8"):
        vae_description(
            "vae-celeba",
            shape=(3, 12, 12),
            num_classes=2,
            class_names=[],
            architecture={"input_size": 12, "widths": [2, 2, 2]},
        )
    with pytest.raises(WeightsError, match=r"lacks decoder\.0\.bias"):
        load_into(tiny("mlp").net, {"encoder.0.weight": torch.zeros(1)}, "other.pth")
    with pytest.raises(WeightsError, match="has wrong shapes"):
        load_into(
            tiny("mlp").net, {**tiny("mlp").net.state_dict(), "enc_mu.bias": torch.zeros(3)}, "other.pth"
        )
    assert describe_state({"x_embedder.proj.weight": torch.zeros(1)}) is None
