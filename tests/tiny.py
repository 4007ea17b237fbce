"""The smallest things that still have every part: a DiT of 16 channels, rows with noise, a judge, streams in
memory."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.diffusion import Noise
from models.families.lightningdit import LightningDiTModel
from models.families.repa import REPAModel
from models.families.sit import SiTModel
from models.families.transformer import Transformer
from models.generative import build
from models.judge import Judge, build_judge, initialise, mlp_description, small_cnn_description
from models.vae import VAEModel
from pipeline.data.batch import Batch
from pipeline.seeding import generator
from pipeline.unlearning.noising import Rows, StepRows

CLASSES, SIDE = 4, 4


# of every other transformer: a size, and what its config.json says of its process
FLOWS: dict[str, tuple[str, dict[str, Any]]] = {
    "sit": ("SiT-tiny", dict(SiTModel.trained)),
    "repa": ("REPA-nano", dict(REPAModel.trained)),
    "lightningdit": ("LightningDiT-nano", dict(LightningDiTModel.trained)),
}


def tiny_dit(
    *,
    dtype: torch.dtype = torch.float64,
    learn_sigma: bool = False,
    seed: int = 0,
    std: float = 0.2,
    family: str = "dit",
) -> Transformer:
    """A DiT, or one of the families beside it, of about 10 k parameters, all sampled from N(0, std): nothing
    is zero, so every gradient has something to say."""
    size, process = FLOWS.get(family, ("DiT-tiny", {"schedule": "cosine", "timesteps": 1000}))
    more = {"encoder_widths": (3,), "projector_width": 4} if family == "repa" else {}
    model = build(
        {
            "family": family,
            "size": size,
            "architecture": {
                "patch": 2,
                "width": 16,
                "depth": 2,
                "heads": 2,
                "input_size": SIDE,
                "channels": channels_of(family),
                "num_classes": CLASSES,
                "learn_sigma": learn_sigma,
                **more,
            },
            **process,
            "clip_samples": True,
        }
    )
    assert isinstance(model, Transformer)
    with torch.no_grad():
        for index, parameter in enumerate(model.net.parameters()):
            parameter.normal_(std=std, generator=generator(seed, "tiny", index))
    model.net.to(dtype)
    return model


def channels_of(family: str) -> int:
    """A cosine between channels needs two of them."""
    return 2 if family == "lightningdit" else 1


def tiny_rows(
    n: int,
    labels: Sequence[int],
    *,
    seed: int = 0,
    name: str = "rows",
    dtype: torch.dtype = torch.float64,
    family: str = "dit",
) -> Rows:
    """`n` rows with the labels in turn, x0 uniform in [-1, 1], t over the whole range; the same numbers in
    any dtype."""
    g = generator(seed, name)
    y = torch.tensor([labels[i % len(labels)] for i in range(n)])
    shape = (n, channels_of(family), SIDE, SIDE)
    x0 = torch.rand(shape, generator=g, dtype=torch.float64) * 2 - 1
    eps = torch.randn(shape, generator=g, dtype=torch.float64)
    t = torch.randint(1000, (n,), generator=g)
    if family != "dit":
        t = (t + 0.5) / 1000
    return Rows(x0=x0.to(dtype), y=y, target_y=y, noise=Noise(t=t, eps=eps.to(dtype)))


def tiny_step_rows(
    n: int = 8, *, seed: int = 0, dtype: torch.dtype = torch.float64, family: str = "dit"
) -> StepRows:
    """A global batch: retain rows of classes 0, 2, 3, forget rows of class 1, exchange rows that ask for 1
    and show 2."""

    def rows(labels: Sequence[int], name: str) -> Rows:
        return tiny_rows(n, labels, seed=seed, name=name, dtype=dtype, family=family)

    exchange = rows([1], "exchange")
    return StepRows(
        retain=rows([0, 2, 3], "retain"),
        forget=rows([1], "forget"),
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
    return Batch.of(sample_id=names, occurrence=(0,) * len(names), y=y, mean=mean.to(dtype))


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
