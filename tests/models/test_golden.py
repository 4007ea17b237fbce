"""Networks, guidance, losses and samplers of four families against the published implementations' figures."""

import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden import Golden, golden, noises
from torch import Tensor

from models.diffusion import Noise, SamplerSettings, flow
from models.diffusion.path import VariancePreserving
from models.diffusion.respacing import timesteps
from models.diffusion.samplers.ode import noise_levels
from models.families.lightningdit import LightningDiT
from models.families.repa import REPA, REPAConfig

FAMILIES = ("dit", "sit", "repa", "lightningdit")


@pytest.fixture(params=FAMILIES)
def reference(request: pytest.FixtureRequest) -> Golden:
    return golden(request.param)


@torch.no_grad()
def test_forward(reference: Golden) -> None:
    r, net = reference, reference.model.net
    out = net(r["x"], r["t"], r["y"])
    wanted = r["forward"]
    assert (out - wanted[:, : out.shape[1]]).abs().max() < 1e-5
    if isinstance(net, REPA):
        for index, got in enumerate(net.projections(r["x"], r["t"], r["y"])):
            r.require(f"forward/projector/{index}", got)


def test_every_name_and_shape_is_the_published_one(reference: Golden) -> None:
    net, facts = reference.model.net, reference.facts["state"]
    assert {name: list(value.shape) for name, value in net.state_dict().items()} == facts["shapes"]
    trained = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    assert set(trained) == set(facts["parameters_trainable"])
    assert set(dict(net.named_buffers())) == set(facts["buffers_in_state_dict"])


def test_loss_of_every_row_and_its_gradient(reference: Golden) -> None:
    r, model = reference, reference.model
    noise = Noise(t=r["loss/t"], eps=r["loss/noise"])
    assert torch.allclose(model.diffusion.noised(r["loss/x0"], noise), r["loss/x_t"], atol=1e-6)
    losses = model.losses(model.net, r["loss/x0"], r["loss/y"], noise)
    r.require("loss/per_row", losses)
    loss = losses.mean()
    if isinstance(model.net, REPA):  # the reference's gradient is of the projection term as well
        projected = model.net.projections(r["loss/x_t"], r["loss/t"], r["loss/y"])
        loss = loss + 0.5 * projection_loss(projected, [r[f"loss/z/{i}"] for i in range(len(projected))], r)
    names = r.names("loss/grad/")
    parameters = [model.net.get_parameter(name.removeprefix("loss/grad/")) for name in names]
    for name, gradient in zip(names, torch.autograd.grad(loss, parameters), strict=True):
        r.require(name, gradient)


def projection_loss(projected: list[Tensor], features: list[Tensor], r: Golden) -> Tensor:
    terms = [-F.cosine_similarity(p, z, dim=-1).mean() for p, z in zip(projected, features, strict=True)]
    loss = torch.stack(terms).mean()
    r.require("loss/proj", loss)
    return loss


@torch.no_grad()
def test_guidance() -> None:
    for family in ("dit", "sit", "lightningdit"):
        r = golden(family)
        half = len(r["cfg/y"]) // 2
        for name in r.names("cfg/scale"):
            t = r["cfg/" + (name.split("/")[2] if name.count("/") == 2 else "t")]
            scale = float(re.findall(r"scale=([\d.]+)", name)[0])
            start = re.findall(r"interval_start=([\d.]+)", name)
            settings = {"guided_channels": 3, "guidance_interval": (0, 1 - float(start[0] if start else 0))}
            guidance = SamplerSettings.of(settings, steps=1, cfg_scale=scale).guidance
            got = guidance(
                r.model.net,
                r.model.diffusion.prediction,
                r["cfg/x"][:half],
                t[:half],
                r["cfg/y"][:half],
                r["cfg/y"][half:],
                level=r.model.diffusion.time.level(t)[0].item(),
            )
            out = got.value if got.variance is None else torch.cat([got.value, got.variance], dim=1)
            assert (out - r[name][:half, : out.shape[1]]).abs().max() < 1e-4, name


def sampled(r: Golden, name: str, described: dict[str, Any], stored: Tensor | None = None) -> None:
    r.require(name, sampled_state(r, name, described, stored))


def sampled_state(r: Golden, name: str, described: dict[str, Any], stored: Tensor | None = None) -> Tensor:
    scale = re.findall(r"cfg=([\d.]+)", name)
    wanted = r[name]
    rows = len(wanted)
    return r.model.diffusion.sample(
        r.model.net,
        r["sample/z"][:rows],
        r["sample/y"][:rows],
        SamplerSettings.of(described, cfg_scale=float(scale[0]) if scale else 1.0),
        null_label=r.model.null_label,
        clip=False,
        fresh=None if stored is None else noises(stored),
    )


@torch.no_grad()
def test_samplers_of_dit() -> None:
    r = golden("dit")
    for name in r.names("sample/ddim/") + r.names("sample/p/"):
        kind, respacing = name.split("/")[1], name.split("/")[2].removeprefix("respacing=")
        described = {
            "name": "ddim" if kind == "ddim" else "ancestral",
            "steps": int(respacing.removeprefix("ddim")),
            "respacing": "ddim" if respacing.startswith("ddim") else "published",
            "guided_channels": 3,
        }
        sampled(r, name, described, r[f"sample/p/respacing={respacing}/noises"] if kind == "p" else None)


@torch.no_grad()
def test_samplers_of_sit() -> None:
    r, guided = golden("sit"), {"guided_channels": 3}
    for name in r.names("sample/ode/euler") + r.names("sample/ode/heun2"):
        steps = int(re.findall(r"num_steps=(\d+)", name)[0]) - 1  # there, points in time
        heun = {"name": "heun", "last_step": "heun"} if "heun2" in name else {"name": "euler"}
        sampled(r, name, {**guided, **heun, "steps": steps})
    for name in r.names("sample/ode/dopri5"):
        # the published code chooses one step for the whole batch: all that is said of these is 0.1
        got = sampled_state(r, name, {**guided, "name": "dopri5", "steps": 1})
        assert (got - r[name]).abs().max() < 0.1, name
    for name in r.names("sample/sde/"):
        _, _, solver, form, last, _ = name.split("/")
        described = {
            "name": {"Euler": "euler_maruyama", "Heun": "heun_sde"}[solver],
            "diffusion": form,
            # the Tweedie estimate is Euler's step where it reaches the data
            "last_step": "mean" if last == "last=Mean" else "euler",
            "steps": 25,
        }
        sampled(r, name, guided | described, r["sample/noises"])


@torch.no_grad()
def test_samplers_of_repa() -> None:
    r = golden("repa")
    for name in r.names("sample/ode/") + r.names("sample/sde/"):
        solver = name.split("/")[2]
        low, high = (re.findall(rf"{end}=([\d.]+)", name) for end in ("low", "high"))
        interval = [float(low[0]) if low else 0.0, float(high[0]) if high else 1.0]
        sampled(r, name, {"name": solver, "steps": 25, "guidance_interval": interval}, r["sample/noises"])


@torch.no_grad()
def test_samplers_of_lightningdit() -> None:
    r = golden("lightningdit")
    for name in r.names("sample/ode/euler"):
        steps, shift = re.findall(r"num_steps=(\d+)/shift=([\d.]+)", name)[0]
        start = re.findall(r"interval_start=([\d.]+)", name)
        described = {
            "name": "euler",
            "steps": int(steps) - 1,
            "shift": float(shift),
            "guided_channels": 3,
            "guidance_interval": [0.0, 1 - float(start[0] if start else 0)],
        }
        sampled(r, name, described)
    for name in r.names("sample/times/"):
        steps, shift = re.findall(r"num_steps=(\d+)/shift=([\d.]+)", name)[0]
        r.require(name, 1 - torch.tensor(noise_levels(int(steps) - 1, float(shift))))


def test_respaced_schedules() -> None:
    r = golden("dit")
    path = r.model.diffusion.path
    assert isinstance(path, VariancePreserving)
    r.require("schedule/betas", path.betas)
    r.require("schedule/alphas_cumprod", path.alpha_bar)
    for name in r.names("schedule/respacing="):
        respacing, kind = re.findall(r"respacing=(\w+)/(\w+)", name)[0]
        count = int(respacing.removeprefix("ddim"))
        kept = timesteps(1000, count, "ddim" if respacing.startswith("ddim") else "published")
        respaced, first = path.respaced(kept), torch.zeros((), dtype=torch.float64)
        got = {
            "timesteps": torch.tensor(kept),
            "betas": respaced.betas,
            "posterior_log_variance_clipped": respaced.at(
                "posterior_log_variance", torch.arange(count), first
            ).flatten(),
        }
        r.require(name, got[kind])


def test_times_of_training_and_the_cosine_path() -> None:
    light, repa = golden("lightningdit"), golden("repa")
    normal = light["lognorm/normal"]
    for mean in (0.0, 0.5):
        light.require(f"lognorm/mu={mean}/t", torch.sigmoid(normal + mean).float())
    time = flow("linear", data_at=0, times="logit_normal").time
    repa.require("lognormal/linear/t", time.logit_normal(repa["lognormal/normal"]))  # type: ignore[union-attr]
    cosine = flow("cosine", data_at=0)
    noise = Noise(t=repa["loss/t"], eps=repa["loss/noise"])
    losses = cosine.losses(repa.model.net, repa["loss/x0"], repa["loss/y"], noise)
    repa.require("loss/cosine/per_row", losses)


@torch.no_grad()
def test_lightningdit_with_normalised_queries_and_keys() -> None:
    r = golden("lightningdit", qk_norm=True)
    assert isinstance(r.model.net, LightningDiT)
    start = "qknorm/extra_state/"
    extra = {name.removeprefix(start): r[name] for name in r.names(start)}
    r.model.net.load_state_dict(r.state | extra)
    r.require("qknorm/forward", r.model.net(r["x"], r["t"], r["y"]))


def published_shapes(facts: dict[str, Any], size: dict[str, int], side: int) -> dict[str, list[int]]:
    """The state dict of a published `size` on latents of `side`: that of the tiny published model, every axis
    as much longer as it has to be, one projector (768 wide) and as many blocks as it has."""
    tiny, width, patch = facts["tiny_config"], size["hidden"], size["patch"]
    tokens, outputs = (side // patch) ** 2, facts["state"]["shapes"]["final_layer.linear.bias"][0]
    outputs = outputs // tiny["patch_size"] ** 2 * patch**2
    swiglu, hidden = (int(2 / 3 * 4 * one) for one in (tiny["hidden_size"], width))
    length = {1: 1, 16: tokens, tiny["num_classes"] + 1: 1001, swiglu: hidden, 2 * swiglu: 2 * hidden}
    length |= {tiny.get("projector_dim"): 2048, tiny.get("z_dims", [None])[0]: 768}
    length |= {tiny["hidden_size"] * ratio: width * ratio for ratio in (1, 2, 3, 4, 6)}
    own = {  # axes that do not follow from their tiny length
        "x_embedder.proj.weight": [width, tiny["in_channels"], patch, patch],
        "t_embedder.mlp.0.weight": [width, 256],
        "final_layer.linear.weight": [outputs, width],
        "final_layer.linear.bias": [outputs],
        "feat_rope.freqs_cos": [tokens, width // size["heads"]],
        "feat_rope.freqs_sin": [tokens, width // size["heads"]],
    }
    shapes = {}
    for name, axes in facts["state"]["shapes"].items():
        if re.match(r"blocks\.[1-9]|projectors\.[1-9]", name):
            continue
        shape = own.get(name) or [length[axis] for axis in axes]
        for block in range(size["depth"] if name.startswith("blocks.") else 1):
            shapes[name.replace("blocks.0.", f"blocks.{block}.")] = shape
    return shapes


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_of_every_published_size(family: str) -> None:
    """Those of the tiny published model, enlarged to the size's width, depth and patch; together they have
    as many numbers as the published code counts."""
    r = golden(family)
    for name, wanted in r.facts["published_sizes"].items():
        if family == "repa" and name.startswith("SiT-S"):
            continue  # as published these cannot be run: their heads have another width
        size = name.replace("SiT", "REPA") if family == "repa" else name
        architecture: Any = r.model.architecture_of(size)
        assert not isinstance(architecture, REPAConfig) or architecture.encoder_widths == (768,)
        with torch.device("meta"):
            net = r.model.network(architecture)
        shapes = published_shapes(r.facts, wanted, side=16 if family == "lightningdit" else 32)
        assert {key: list(value.shape) for key, value in net.state_dict().items()} == shapes, size
        assert sum(map(math.prod, shapes.values())) == wanted["params_total"] + wanted["buffers"], size
        trainable = sum(p.numel() for p in net.parameters() if p.requires_grad)
        assert trainable == wanted["params_trainable"], size
        assert sum(buffer.numel() for buffer in net.buffers()) == wanted["buffers"], size
