"""Classifiers of transformers as judges: their own preprocessing on our samples, logits to the bit, features
before the head."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import weights
from models.judge import build_judge
from models.transformers_judge import as_the_classifier_wants, image_settings
from pipeline.errors import InputError
from pipeline.weights import model_folder

transformers = pytest.importorskip("transformers")
NAMES = ["golden retriever", "Labrador retriever, Lab", "tench, Tinca tinca"]
PREPROCESSOR = {
    "size": {"height": 16, "width": 16},
    "resample": 2,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        id2label=dict(enumerate(NAMES)),
        label2id={name: label for label, name in enumerate(NAMES)},
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "judge")
    (tmp_path / "judge" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return tmp_path / "judge"


@torch.no_grad()
def test_logits_are_the_classifiers_own(folder: Path, tmp_path: Path) -> None:
    stored = model_folder.read(str(folder), "judge.weights")
    kept = model_folder.read(model_folder.kept(stored, str(tmp_path / "runs")).uri, "judge.weights")
    assert kept.config["class_names"] == NAMES and kept.config["num_classes"] == 3
    judge = build_judge(kept.config)
    weights.load_into(judge.net, kept.state, "judge")
    judge.net.eval()
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    original = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    unit = (x + 1) / 2
    wanted = original(
        pixel_values=(unit - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1))
        / torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
    )
    assert torch.allclose(judge.logits(x), wanted.logits, atol=1e-5)
    features = judge.features(x)
    assert features.shape == (4, judge.feature_size) == (4, 16)
    assert torch.allclose(original.classifier(features), wanted.logits, atol=1e-5)
    assert torch.equal(judge.logits(x[:1].clone()), judge.logits(x[:1].clone()))
    assert judge.logits(x[:, :1]).shape == (4, 3)  # grey samples are judged too


def test_preprocessing_is_what_the_file_says() -> None:
    vit = image_settings(PREPROCESSOR)
    assert (vit["resize"], vit["crop"], vit["mode"]) == (16, 16, "bilinear")
    convnext = image_settings({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3})
    assert (convnext["resize"], convnext["crop"], convnext["mode"]) == (256, 224, "bicubic")
    clip = image_settings(
        {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
    )
    assert (clip["resize"], clip["crop"]) == (256, 224)
    raw = image_settings({"do_normalize": False}, image_size=32)
    assert (raw["resize"], raw["mean"], raw["std"]) == (32, [0.0] * 3, [1.0] * 3)
    ramp = torch.linspace(-1, 1, 64).view(1, 1, 1, 64).expand(1, 3, 64, 64)
    got = as_the_classifier_wants(
        ramp, {"resize": 32, "crop": 16, "mode": "bilinear", "mean": [0.0] * 3, "std": [1.0] * 3}
    )
    from PIL import Image

    pixels = Image.fromarray(((ramp[0, 0].numpy() + 1) / 2).astype(np.float32), mode="F").resize(
        (32, 32), Image.Resampling.BILINEAR
    )
    assert got.shape == (1, 3, 16, 16)
    assert np.allclose(got[0, 0].numpy(), np.asarray(pixels)[8:24, 8:24], atol=1e-3)


def test_what_is_no_classifier_is_refused(folder: Path, tmp_path: Path) -> None:
    def judged(**change: Any) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        model_folder.read(str(folder), "judge.weights")

    with pytest.raises(InputError, match=r"got a model of ViTModel, expected an image classifier"):
        judged(architectures=["ViTModel"])
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"has no weights; expected model\.safetensors or pytorch_model\.bin"
    ):
        judged()
    with pytest.raises(InputError, match=r"judge\.weights: nothing at .*gone"):
        model_folder.read(str(tmp_path / "gone" / "judge.safetensors"), "judge.weights")
