"""Golden files of published implementations, where UNLEARN_TEST_DATA names the folder that has them;
golden/README.md there says how they were made."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from models.families.lightningdit import LightningDiTModel
from models.families.repa import REPAModel
from models.families.sit import SiTModel
from models.families.transformer import Transformer
from models.generative import build

SIZES = {"dit": "DiT-nano", "sit": "SiT-nano", "repa": "REPA-nano", "lightningdit": "LightningDiT-nano"}

TRAINED = {model.family: model.trained for model in (SiTModel, REPAModel, LightningDiTModel)}


@dataclass(frozen=True)
class Golden:
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    model: Transformer

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def state(self) -> dict[str, Tensor]:
        return state_of(self.tensors)

    def names(self, start: str) -> list[str]:
        return sorted(name for name in self.tensors if name.startswith(start) and "noises" not in name)

    def require(self, name: str, got: Tensor) -> None:
        """`got` is the stored tensor to 1e-5, or to twice what one rounding of the weights moves it by; to
        less where the file says so."""
        wanted, bounds = self.tensors[name], self.facts["suggested_atol"]
        rounding = self.facts["sensitivity"]["values"].get(name, 0.0)
        atol = bounds[max((key for key in bounds if name.startswith(key)), key=len)]
        atol = min(atol, max(1e-5, 2 * rounding))
        error = (got - wanted).abs().max().item()
        assert got.shape == wanted.shape and error <= atol, f"{name}: {error:.2e} > {atol:.0e}"


def state_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = "state/"
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def golden(family: str, **architecture: Any) -> Golden:
    """The family's file and a model with its weights; skips without it."""
    root = os.environ.get("UNLEARN_TEST_DATA")
    if root is None:
        pytest.skip("UNLEARN_TEST_DATA is not set")
    folder = Path(root) / "golden"
    tensors = safetensors.torch.load_file(folder / f"{family}.safetensors")
    facts = json.loads((folder / f"{family}.json").read_text())
    model = build(description(family, facts["tiny_config"], **architecture))
    assert isinstance(model, Transformer)
    if not architecture:
        model.net.load_state_dict(state_of(tensors))
    model.net.eval()
    return Golden(tensors, facts, model)


def description(family: str, tiny: dict[str, Any], **more: Any) -> dict[str, Any]:
    architecture = {
        "patch": tiny["patch_size"],
        "width": tiny["hidden_size"],
        "depth": tiny["depth"],
        "heads": tiny["num_heads"],
        "input_size": tiny["input_size"],
        "channels": tiny["in_channels"],
        "num_classes": tiny["num_classes"],
        "learn_sigma": tiny.get("learn_sigma", False),
        **more,
    }
    process = {"schedule": "linear", "timesteps": 1000} if family == "dit" else dict(TRAINED[family])
    if family == "repa":
        architecture |= {
            "encoder_widths": tiny["z_dims"],
            "projector_width": tiny["projector_dim"],
            "encoder_depth": tiny["encoder_depth"],
        }
    return {
        "family": family,
        "size": SIZES[family],
        "architecture": architecture,
        **process,
        "clip_samples": False,
    }


def noises(stored: Tensor) -> Any:
    """What a sampler draws, block after block."""
    blocks = iter(stored)
    return lambda: next(blocks, torch.zeros_like(stored[0]))  # the last draw is not used where none is stored
