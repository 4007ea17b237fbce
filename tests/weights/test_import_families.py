"""State dicts of SiT, REPA and LightningDiT in the forms in which they are published."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.families.lightningdit import LightningDiTModel
from models.families.repa import REPAModel
from models.families.sit import SiTModel
from models.generative import FAMILIES, build
from models.weights import load_into
from pipeline.config import ExportConfig
from pipeline.errors import InputError
from pipeline.tracking.export import export
from pipeline.weights import model_folder

SIZES = {"sit": "SiT-nano", "repa": "REPA-nano", "lightningdit": "LightningDiT-nano"}
SMALL: dict[str, dict[str, Any]] = {
    "repa": {"projector_width": 12, "encoder_widths": (6, 5)},
    "lightningdit": {"qk_norm": True},
}


def random_state(family: str) -> dict[str, Tensor]:
    model: Any = FAMILIES[family]
    net = model.network(model.architecture_of(SIZES[family], **SMALL.get(family, {})))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1, generator=generator)
    return dict(net.state_dict())


def read(path: Path, value: Any, size: str | None) -> model_folder.Stored:
    torch.save(value, path)
    return model_folder.read(str(path), "model.weights", size=size)


@pytest.mark.parametrize("family", SIZES)
def test_every_published_form_is_read_as_the_same_weights(tmp_path: Path, family: str) -> None:
    state, size = random_state(family), SIZES[family]
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    arguments = argparse.Namespace(cfg_prob=0.1)
    bare = read(tmp_path / "bare.pt", state, size)
    wrapped = {f"module.{name}": value for name, value in state.items()}
    assert all(torch.equal(bare.state[name], value) for name, value in state.items())
    forms = [
        {"model": other, "ema": state, "opt": {}, "args": arguments},
        {"model": other, "ema": {f"_orig_mod.{name}": value for name, value in state.items()}},
        wrapped,
    ]
    if family != "repa":
        forms.append({"model": wrapped, "opt": {}})
    for number, form in enumerate(forms):
        assert read(tmp_path / f"{number}.pt", form, size).digest == bare.digest
    half = read(tmp_path / "half.pt", {name: value.half() for name, value in state.items()}, size)
    assert {value.dtype for value in half.state.values()} == {torch.float32}
    # what is read runs, and goes out as it came in
    model = build(bare.config)
    load_into(model.net, bare.state, "it")
    assert model.sample(labels=torch.tensor([1]), seeds=[0], cfg_scale=2.0, steps=2).isfinite().all()
    uri = str(tmp_path / "out" / "weights.safetensors")
    export(ExportConfig(weights="x", format="safetensors", output=uri), bare, uri)
    again = model_folder.read(uri, "model.weights")
    assert again.digest == bare.digest and again.config == bare.config


def test_the_first_names_of_repa(tmp_path: Path) -> None:
    state = random_state("repa")
    older = {name.replace("blocks.1.", "decoder_blocks.0."): value for name, value in state.items()}
    assert older.keys() != state.keys()
    digests = {read(tmp_path / "w.pt", one, "REPA-nano").digest for one in (state, older)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("family", "size", "message"),
    [
        (
            "repa",
            "DiT-nano",
            "looks like a model of family repa, but model.size is DiT-nano; expected REPA-nano",
        ),
        (
            "sit",
            "LightningDiT-nano",
            "looks like a model of family dit or sit, .* expected DiT-nano, SiT-nano",
        ),
        ("lightningdit", "SiT-nano", "looks like a model of family lightningdit"),
        ("sit", "SiT-huge", "model.size: got 'SiT-huge', expected one of"),
    ],
)
def test_a_checkpoint_of_another_family(tmp_path: Path, family: str, size: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "w.pt", random_state(family), size)
    assert "\n" not in str(caught.value)


def test_a_repa_checkpoint_without_averaged_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a REPA checkpoint without `ema`"):
        read(tmp_path / "w.pt", {"model": random_state("repa"), "opt": {}}, "REPA-nano")


def test_the_published_samplers_fit_their_families() -> None:
    for family in (SiTModel, REPAModel, LightningDiTModel):
        size = next(name for name in family.sizes if name.endswith("nano"))
        architecture = family.architecture_of(size)
        shape = (architecture.channels, architecture.input_size, architecture.input_size)
        names = [""] * architecture.num_classes
        described = family.describe(
            size, shape=shape, class_names=names, latent=True, sampler=family.published
        )
        assert described["sampler"] == dict(family.published)
        build(described)
        with pytest.raises(ValueError, match=r"sampler\.name: got 'ddim' for a flow, expected one of euler"):
            build(described | {"sampler": {"name": "ddim", "steps": 2, "cfg_scale": 1.0}})
        with pytest.raises(ValueError, match=r"sampler\.variance: got 'learned', which euler does not take"):
            build(described | {"sampler": {"variance": "learned", "steps": 2, "cfg_scale": 1.0}})
        with pytest.raises(
            ValueError, match=r"guidance_interval: got .* expected two noise levels between 0"
        ):
            build(described | {"sampler": {"guidance_interval": [0.2, 1.5], "steps": 2, "cfg_scale": 1.0}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": {"name": "ddim", "steps": 2, "cfg_scale": 1.0}}, "sampler.name: got 'ddim' for a flow"),
        ({"sampler": {"steps": 2, "cfg_scale": 1.0, "eta": 1}}, "sampler: unknown setting 'eta'"),
        ({"path": "square"}, "path: got 'square', expected linear or cosine"),
        ({"times": "cosine"}, "times: got 'cosine', expected uniform or logit_normal"),
        ({"data_at": 2}, "data_at: got 2, expected 0 or 1"),
    ],
)
def test_a_folder_whose_settings_are_none_of_its_familys(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    stored = read(tmp_path / "w.pt", random_state("sit"), "SiT-nano")
    model_folder.write(str(tmp_path / "folder"), stored.config | changes, stored.state, {})
    with pytest.raises(InputError, match=f"model.weights: .*config.json: {message}") as caught:
        model_folder.read(str(tmp_path / "folder"), "model.weights")
    assert "\n" not in str(caught.value)
