"""The smallest things that still have every part: a DiT of 16 channels, rows with noise, a judge, streams in
memory."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.diffusion import Noise
from models.generative import DiTModel, build
from models.judge import Judge, build_judge, initialise, mlp_description, small_cnn_description
from models.vae import VAEModel
from pipeline.data.batch import Batch
from pipeline.seeding import generator
from pipeline.unlearning.noising import Rows, StepRows

CLASSES, SIDE = 4, 4


def tiny_dit(
    *, dtype: torch.dtype = torch.float64, learn_sigma: bool = False, seed: int = 0, std: float = 0.2
) -> DiTModel:
    """A DiT of about 10 k parameters, all sampled from N(0, std): nothing is zero, so every gradient has
    something to say."""
    model = build(
        {
            "family": "dit",
            "size": "DiT-tiny",
            "architecture": {
                "patch": 2,
                "width": 16,
                "depth": 2,
                "heads": 2,
                "input_size": SIDE,
                "channels": 1,
                "num_classes": CLASSES,
                "learn_sigma": learn_sigma,
            },
            "schedule": "cosine",
            "timesteps": 1000,
            "clip_samples": True,
        }
    )
    assert isinstance(model, DiTModel)
    with torch.no_grad():
        for index, parameter in enumerate(model.net.parameters()):
            parameter.normal_(std=std, generator=generator(seed, "tiny", index))
    model.net.to(dtype)
    return model


def tiny_rows(
    n: int, labels: Sequence[int], *, seed: int = 0, name: str = "rows", dtype: torch.dtype = torch.float64
) -> Rows:
    """`n` rows with the labels in turn, x0 uniform in [-1, 1], t over the whole range; the same numbers in
    any dtype."""
    g = generator(seed, name)
    y = torch.tensor([labels[i % len(labels)] for i in range(n)])
    x0 = torch.rand((n, 1, SIDE, SIDE), generator=g, dtype=torch.float64) * 2 - 1
    eps = torch.randn((n, 1, SIDE, SIDE), generator=g, dtype=torch.float64)
    return Rows(
        x0=x0.to(dtype),
        y=y,
        target_y=y,
        noise=Noise(t=torch.randint(1000, (n,), generator=g), eps=eps.to(dtype)),
    )


def tiny_step_rows(n: int = 8, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> StepRows:
    """A global batch: retain rows of classes 0, 2, 3, forget rows of class 1, exchange rows that ask for 1
    and show 2."""
    exchange = tiny_rows(n, [1], seed=seed, name="exchange", dtype=dtype)
    return StepRows(
        retain=tiny_rows(n, [0, 2, 3], seed=seed, name="retain", dtype=dtype),
        forget=tiny_rows(n, [1], seed=seed, name="forget", dtype=dtype),
        exchange=replace(exchange, target_y=torch.full((n,), 2)),
    )


def share(rows: StepRows, rank: int, world_size: int) -> StepRows:
    """A rank's part of a global batch."""

    def cut(part: Rows | None) -> Any:
        return None if part is None else part.part(rank, world_size)

    return StepRows(retain=cut(rows.retain), forget=cut(rows.forget), exchange=cut(rows.exchange))


def tiny_judge(seed: int = 0) -> Judge:
    """An untrained judge: its predictions mean nothing, are always the same and name every class."""
    judge = build_judge(
        small_cnn_description(
            shape=(1, SIDE, SIDE), num_classes=CLASSES, class_names=[str(i) for i in range(CLASSES)]
        )
    )
    initialise(judge.net, generator(seed, "judge"))
    judge.net.eval()
    some = torch.rand((64, 1, SIDE, SIDE), generator=generator(seed, "some")) * 2 - 1
    with torch.no_grad():
        judge.net.get_parameter("head.bias").sub_(judge.logits(some).mean(0))
    return judge


def tiny_batch(
    labels: Sequence[int], *, each: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Batch:
    """`each` images of every label, a pattern of its class plus noise, named by label and number."""
    g = generator(seed, "images")
    patterns = (
        torch.rand((CLASSES, 1, SIDE, SIDE), generator=generator("patterns"), dtype=torch.float64) * 1.6 - 0.8
    )
    y = torch.tensor([label for label in labels for _ in range(each)])
    noise = torch.randn((len(y), 1, SIDE, SIDE), generator=g, dtype=torch.float64)
    names = tuple(f"{label}-{k}" for label in labels for k in range(each))
    mean = (patterns[y] + 0.1 * noise).clamp(-1, 1)
    return Batch(sample_id=names, occurrence=(0,) * len(names), y=y, mean=mean.to(dtype))


def relative(got: Tensor, wanted: Tensor) -> float:
    """|got - wanted| / |wanted|."""
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()


def tiny_vae(seed: int = 0, dtype: torch.dtype = torch.float64, batch_norm: str = "running") -> VAEModel:
    """An MLP VAE of 4 x 4 pixels, freshly initialised, with statistics that are not the trivial ones."""
    architecture = {"input_size": SIDE, "widths": [8], "num_classes": CLASSES}
    model = build({"family": "vae", "size": "vae-mnist", "architecture": architecture}, batch_norm=batch_norm)
    assert isinstance(model, VAEModel)
    model.vae.initialise(generator(seed, "tiny vae"))
    with torch.no_grad():
        for name, buffer in model.net.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.2, 1.0, generator=generator(seed, name))
    model.net.to(dtype).train()
    return model


def tiny_vae_rows(name: str, n: int = 8) -> Rows:
    g = generator(name, "vae")
    nothing = torch.zeros(n, dtype=torch.int64)
    x0 = torch.rand((n, 1, SIDE, SIDE), generator=g, dtype=torch.float64) * 2 - 1
    return Rows(
        x0=x0,
        y=nothing,
        target_y=nothing,
        noise=Noise(t=nothing, eps=torch.randn((n, 2), generator=g, dtype=torch.float64)),
    )


def tiny_latents(n: int) -> Tensor:
    return torch.randn((n, 2), generator=generator("latents"), dtype=torch.float64)


def tiny_hat_judge() -> Judge:
    """An MLP judge in float64: smooth enough in its predictions to differentiate twice."""
    description = mlp_description(
        shape=(1, SIDE, SIDE), num_classes=CLASSES, class_names=[str(i) for i in range(CLASSES)], features=6
    )
    judge = build_judge(description)
    initialise(judge.net, generator("hat judge"))
    judge.net.double().requires_grad_(False)
    return judge
