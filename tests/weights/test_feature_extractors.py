"""Feature spaces: each of the table read from a tiny file of its format, asked, kept and asked again; what is
refused, in one line."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from models.features.inception import eight_bit
from models.features.inception_v3 import InceptionV3
from models.features.table import SPACES
from models.transformers_judge import as_the_classifier_wants
from pipeline import storage
from pipeline.config import Extractor
from pipeline.errors import InputError
from pipeline.weights import feature_extractors, model_folder

X = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
CPU = torch.device("cpu")


class Script(torch.nn.Module):
    """The convention of the TorchScript Inception: pixels from 0 to 255 of any size, features on request."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 8, 3)

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        found = self.convolution(F.interpolate(img.float(), size=[12, 12])).mean([2, 3])
        return found if return_features else found.softmax(1)


def script(folder: Path) -> tuple[Path, str]:
    torch.manual_seed(0)
    path = folder / "inception-2015-12-05.pt"
    torch.jit.save(torch.jit.script(Script()), str(path))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def dinov2(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(folder / "dinov2")
    settings = {
        "size": {"shortest_edge": 32},
        "do_center_crop": True,
        "crop_size": {"height": 28, "width": 28},
        "resample": 3,
    }
    (folder / "dinov2" / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder / "dinov2"


def extractor(name: str, folder: Path) -> Extractor:
    if name == "dinov2":
        return Extractor(weights=str(dinov2(folder)))
    path, digest = script(folder)
    return Extractor(weights=str(path), sha256=digest)


@pytest.mark.parametrize("name", SPACES)
def test_every_space_of_the_table(name: str, tmp_path: Path) -> None:
    (stored,) = feature_extractors.read_spaces({name: extractor(name, tmp_path)}).values()
    space = feature_extractors.open_space(stored.config, stored.state, CPU)
    found = space.features(X)
    assert found.shape == (3, space.feature_size) and found.dtype == torch.float32 and not found.requires_grad
    # a row does not depend on its neighbours
    assert torch.allclose(space.features(X[:1]), found[:1], atol=1e-5)
    assert space.features(X[:, :1]).shape == found.shape  # grey images too
    (uri,) = feature_extractors.kept({name: stored}, str(tmp_path / "runs")).values()
    again = model_folder.read(uri, name)
    assert again.digest == stored.digest and torch.equal(
        feature_extractors.open_space(again.config, again.state, CPU).features(X), found
    )
    # as kept it needs no digest, since its manifest has it; but code needs one from whoever has it run
    digest = None
    if stored.config.get("form") == "script":
        refused({name: Extractor(weights=uri)}, r"sha256: got none, and .* holds TorchScript")
        refused({name: Extractor(weights=uri, sha256="0" * 64)}, "expected 0000")
        digest = hashlib.sha256(Path(uri, "model.safetensors").read_bytes()).hexdigest()
    (own,) = feature_extractors.read_spaces({name: Extractor(weights=uri, sha256=digest)}).values()
    assert own.digest == stored.digest
    storage.write_json(f"{uri}/manifest.json", {"weights_digest": "0" * 64})
    with pytest.raises(InputError, match="holds weights 000000000000, expected those imported from"):
        feature_extractors.kept({name: stored}, str(tmp_path / "runs"))  # somebody else was there first
    facts = feature_extractors.facts({name: own}, stored)
    assert facts[name] == {"weights": stored.uri, "digest": stored.digest} and list(facts) == ["judge", name]


def test_a_script_is_asked_as_the_published_one_is(tmp_path: Path) -> None:
    path, digest = script(tmp_path)
    (stored,) = feature_extractors.read_spaces(
        {"inception": Extractor(weights=str(path), sha256=digest)}
    ).values()
    wanted = torch.jit.load(str(path))(eight_bit(X), return_features=True)
    assert torch.equal(feature_extractors.open_space(stored.config, stored.state, CPU).features(X), wanted)
    fsspec.filesystem("memory").pipe_file("/features/inception.pt", path.read_bytes())
    away = feature_extractors.read_spaces(
        {"inception": Extractor(weights="memory://features/inception.pt", sha256=digest)}
    )
    assert away["inception"].digest == stored.digest


def test_dinov2_is_the_class_token_of_images_prepared_its_own_way(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = dinov2(tmp_path)
    (stored,) = feature_extractors.read_spaces({"dinov2": Extractor(weights=str(folder))}).values()
    prepared = as_the_classifier_wants(
        X, {"resize": 32, "crop": 28, "mode": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    )
    with torch.no_grad():
        wanted = transformers.Dinov2Model.from_pretrained(folder).eval()(pixel_values=prepared).pooler_output
    assert torch.allclose(
        feature_extractors.open_space(stored.config, stored.state, CPU).features(X), wanted, atol=1e-6
    )


@pytest.fixture(scope="module")
def whole() -> dict[str, torch.Tensor]:
    """A state dict with torchvision's names, its classifier and auxiliary head among them."""
    torch.manual_seed(0)
    heads = {
        "fc.weight": torch.zeros(1000, 2048),
        "fc.bias": torch.zeros(1000),
        "AuxLogits.fc.bias": torch.zeros(1000),
    }
    return {**InceptionV3(fid=False).state_dict(), **heads}


def test_inception_from_a_state_dict(tmp_path: Path, whole: dict[str, torch.Tensor]) -> None:
    fid = {name: value for name, value in whole.items() if not name.startswith("AuxLogits")} | {
        "fc.weight": torch.zeros(1008, 2048),
        "fc.bias": torch.zeros(1008),
    }
    safetensors.torch.save_file(whole, tmp_path / "torchvision.safetensors")
    torch.save(
        {name: value for name, value in fid.items() if not name.endswith("num_batches_tracked")},
        tmp_path / "fid.pth",
    )
    found = {}
    for file in ("torchvision.safetensors", "fid.pth"):
        stored = feature_extractors.read_spaces({"inception": Extractor(weights=str(tmp_path / file))})[
            "inception"
        ]
        assert stored.config["fid"] == (file == "fid.pth")
        assert (
            sum(value.numel() for name, value in stored.state.items() if name.endswith(("weight", "bias")))
            == 21_785_568
        )
        found[file] = feature_extractors.open_space(stored.config, stored.state, CPU).features(X[:1])
        assert found[file].shape == (1, 2048)
    assert not torch.allclose(*found.values())  # the poolings differ


def refused(features: dict[str, Extractor], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        feature_extractors.read_spaces(features)
    assert "\n" not in str(caught.value)


class Mischief(torch.nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return torch.from_file(self.path, shared=True, size=4)


def test_code_runs_only_when_it_is_known_which(tmp_path: Path) -> None:
    path, digest = script(tmp_path)
    said = (
        r"features\.inception\.sha256: got none, and a TorchScript file brings code.*expected the SHA-256 of"
        r" .*inception-2015-12-05\.pt"
    )
    refused({"inception": Extractor(weights=str(path))}, said)
    refused(
        {"inception": Extractor(weights=str(path), sha256="0" * 64)},
        rf"features\.inception\.sha256: .* has {digest}, expected 0000",
    )
    written = tmp_path / "written"
    torch.jit.save(torch.jit.script(Mischief(str(written))), str(tmp_path / "mischief.pt"))
    refused({"inception": Extractor(weights=str(tmp_path / "mischief.pt"))}, "brings code")
    refused(
        {"inception": Extractor(weights=str(tmp_path / "mischief.pt"), sha256=digest)},
        "another file or a damaged one",
    )
    assert not written.exists()


def test_what_is_no_feature_space_is_refused(tmp_path: Path, whole: dict[str, torch.Tensor]) -> None:
    def file(name: str, state: Any, save: Callable[..., None] = safetensors.torch.save_file) -> Extractor:
        save(state, tmp_path / name)
        return Extractor(weights=str(tmp_path / name))

    refused(
        {"clip": Extractor(weights="x")},
        r"features: got 'clip', expected some of inception, dinov2 \(the judge's own are always there\)",
    )
    refused(
        {"inception": Extractor(weights=str(tmp_path / "no.pt"))},
        r"features\.inception\.weights: nothing at .*no\.pt",
    )
    few = {name: value for name, value in whole.items() if not name.startswith("Mixed_6")}
    refused({"inception": file("few.safetensors", few)}, r"lacks Mixed_6a.* and \d+ more")
    refused(
        {"inception": file("bare.safetensors", {"x": torch.zeros(1)})},
        r"lacks fc\.bias, which tells FID's weights",
    )
    refused(
        {"inception": file("pickle.pth", {"fc.bias": Path()}, torch.save)}, "holds more than plain tensors"
    )
    refused({"inception": Extractor(weights=str(tmp_path))}, r"is a folder, expected Inception's file")
    cut = tmp_path / "cut.pt"
    path, _ = script(tmp_path)
    cut.write_bytes(path.read_bytes()[:-60])
    refused({"inception": Extractor(weights=str(cut))}, "got neither safetensors nor a file of torch.save")
    folder = dinov2(tmp_path)
    refused({"dinov2": Extractor(weights=str(tmp_path / "runs"))}, "nothing at")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    refused(
        {"dinov2": Extractor(weights=str(folder))},
        r"got a model of type 'vit', expected a DINOv2 of transformers",
    )
    (folder / "model.safetensors").unlink()
    refused(
        {"dinov2": Extractor(weights=str(folder))},
        r"has no weights of a DINOv2, expected a transformers folder",
    )
