"""Another sampler than the model's own: what may be asked of which model, and where it is used."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from contexts import FEW, tiny_context, tiny_model

from models.diffusion.samplers.table import OWN, SAMPLERS, changed
from pipeline.config.evaluate import Protocol
from pipeline.config.sampling import Sampler
from pipeline.errors import InputError
from pipeline.evaluation.adm import samples_of
from pipeline.evaluation.attacks.samplers import stochastic
from pipeline.evaluation.partials import Shard
from pipeline.evaluation.samplers import require_sampler
from pipeline.evaluation.sampling import plan, sample_blocks


def choices(key: str) -> set[Any]:
    return set(get_args(get_args(Sampler.model_fields[key].annotation)[0]))


def test_the_keys_are_those_of_the_table() -> None:
    assert choices("name") == set(SAMPLERS)
    assert set(Sampler.model_fields) == {"name", "guided_channels", "guidance_interval", *OWN}
    for key in OWN:
        every = [sampler.own[key] for sampler in SAMPLERS.values() if key in sampler.own]
        if all(one is not None for one in every):
            assert choices(key) == {value for one in every for value in one or ()}, key


def test_another_name_leaves_behind_what_it_does_not_take() -> None:
    own = {"name": "heun", "shift": 0.3, "last_step": "heun", "guided_channels": 3, "steps": 9}
    assert changed(own, {"name": "euler"}) == {
        "name": "euler",
        "shift": 0.3,
        "guided_channels": 3,
        "steps": 9,
    }
    assert "shift" not in changed(own, {"name": "euler_maruyama"})
    assert changed(own, {"shift": 0.5}) == own | {"shift": 0.5}
    assert Sampler(guided_channels="all").changes == {"guided_channels": None}


@pytest.mark.parametrize(
    ("family", "given", "steps", "message"),
    [
        ("sit", {"name": "ancestral"}, 5, r"evaluate\.sampler\.name: got 'ancestral' for a flow, expected"),
        ("dit", {"name": "heun"}, 5, r"evaluate\.sampler\.name: got 'heun' for a diffusion, expected"),
        ("sit", {"variance": "learned"}, 5, r"evaluate\.sampler\.variance: got 'learned', which euler does"),
        (
            "dit",
            {"name": "ancestral", "variance": "learned"},
            5,
            r"evaluate\.sampler\.variance: got learned, which this model did not",
        ),
        (
            "repa",
            {"guidance_interval": (0.2, 1.5)},
            5,
            r"evaluate\.sampler\.guidance_interval: got \[0\.2, 1\.5\], expected two noise levels",
        ),
        ("dit", {"guided_channels": 99}, 5, r"evaluate\.sampler\.guided_channels: got 99, expected 1 to the"),
        ("dit", {"respacing": "ddim"}, 600, r"evaluate\.sampler_steps: no integer stride takes 600 of 1000"),
        ("dit", {}, 2000, r"evaluate\.sampler_steps: got 2000, expected 1 to 1000"),
        ("vae", {}, 1, r"evaluate\.sampler: got one for a vae-mnist, which takes one pass"),
    ],
)
def test_what_a_model_has_not_got_is_refused(
    family: str, given: dict[str, Any], steps: int, message: str
) -> None:
    if family == "vae":
        from models.vae import VAEModel

        config = VAEModel.describe("vae-mnist", shape=(1, 28, 28), class_names=["0", "1"])
    else:
        config = tiny_model(family=family).config
    with pytest.raises(InputError, match=message) as refusal:
        require_sampler(config, Sampler(**given), "evaluate.", {"evaluate.sampler_steps": steps})
    assert "\n" not in str(refusal.value)


def test_images_are_sampled_by_the_sampler_that_is_asked_for() -> None:
    context, sampler = tiny_context(family="sit"), Sampler(name="euler_maruyama", last_size=0.1)
    counts = {"seed": 0, "purpose": "p", "cfg_scale": 2.0, "steps": 3, "batch": 8}
    own, other = (plan({1: 4}, sampler=one, **counts) for one in (None, sampler))  # type: ignore[arg-type]
    assert own.seeds == other.seeds
    images: list[torch.Tensor] = []
    for one in (own, other):
        pixels = lambda x: images.append(x) or x  # type: ignore[func-returns-value]  # noqa: E731
        list(sample_blocks(context.model, context.judge, one, Shard(), to_pixels=pixels))
    question = {"labels": torch.tensor(own.labels), "seeds": own.seeds, "cfg_scale": 2.0, "steps": 3}
    described = {"name": "euler_maruyama", "last_size": 0.1}
    assert torch.equal(images[0], context.model.sample(**question))  # type: ignore[arg-type]
    assert torch.equal(images[1], context.model.sample(**question, sampler=described))  # type: ignore[arg-type]
    assert not torch.allclose(*images, atol=1e-2)
    # an attack that samples otherwise does so whatever the run's sampler is
    settings = FEW.model_copy(update={"sampler": sampler})
    attacked = stochastic(replace(context, spec=replace(context.spec, settings=settings)))
    assert attacked.spec.settings.sampler is None


def test_samples_for_the_adm_evaluator() -> None:
    def asked(**given: Any) -> Any:
        settings = Protocol(protocol="adm", images=4, **given)
        return samples_of(tiny_model(family="sit"), settings, "f", seed=0, digest="d" * 64)

    published, ode = asked(), asked(sampler={"name": "heun"}, steps=50)
    assert published.sampler["name"] == "euler_maruyama" and published.uri != ode.uri
    assert ode.sampler == {"name": "heun", "steps": 250, "cfg_scale": 1.5, "guided_channels": 3}
