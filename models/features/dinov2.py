"""DINOv2's features (Oquab et al. 2023, arXiv 2304.07193): the normalised class token, on images prepared as
its own settings say.

Stein et al. 2023 (arXiv 2306.04675) find Frechet distances in this space closer to what people see than
Inception's.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.transformers_judge import as_the_classifier_wants, auto, image_settings, require_no_code
from models.weights import WeightsError

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
FILES = ("model.safetensors", "pytorch_model.bin")
KINDS = ("dinov2", "dinov2_with_registers")


class Dinov2:
    def __init__(self, description: Mapping[str, Any]):
        auto_config, auto_model = auto("AutoModel", "DINOv2")
        architecture = dict(description["architecture"])
        require_no_code(architecture)
        self.net: nn.Module = auto_model.from_config(
            auto_config.for_model(architecture.pop("model_type"), **architecture), trust_remote_code=False
        ).eval()
        self.net.requires_grad_(False)
        self.feature_size = int(description["features"])
        self._image = description["image"]

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        return self.net(pixel_values=as_the_classifier_wants(x, self._image)).last_hidden_state[:, 0].float()


def weights_file(folder: Path) -> Path:
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"{folder} has no weights of a DINOv2, expected a transformers folder with {CONFIG} and {FILES[0]}"
    )


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of the transformers folder. `WeightsError` for what is no DINOv2, `ImportError`
    without transformers."""
    weights_file(folder)
    if not (folder / CONFIG).is_file():
        raise WeightsError(f"{folder} has no {CONFIG}, expected the transformers folder of a DINOv2")
    settings = json.loads((folder / CONFIG).read_text())
    require_no_code(settings)
    kind = settings.get("model_type")
    if kind not in KINDS:
        raise WeightsError(
            f"got a model of type {kind!r}, expected a DINOv2 of transformers ({' or '.join(KINDS)})"
        )
    _, auto_model = auto("AutoModel", "DINOv2")
    net, info = auto_model.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise WeightsError(
            f"its weights lack {', '.join(missing[:3])}"
            + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        )
    preprocessor = (
        json.loads((folder / PREPROCESSOR).read_text()) if (folder / PREPROCESSOR).is_file() else {}
    )
    config = net.config.to_dict()
    description = {
        "space": "dinov2",
        "architecture": config,
        "image": image_settings(preprocessor, config.get("image_size")),
        "features": int(config["hidden_size"]),
    }
    return description, dict(net.state_dict())


def build(description: Mapping[str, Any], state: Mapping[str, Tensor]) -> Dinov2:
    space = Dinov2(description)
    space.net.load_state_dict(dict(state))
    return space
