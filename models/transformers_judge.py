"""Any image classifier of transformers as a judge, with its own resizing and normalisation applied to our
samples.

Only architectures that transformers itself ships: no code from a model's folder is run.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODES = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as preprocessor_config.json has them


class TransformersJudge:
    """Logits and the features before the last linear layer, both from one pass where the same images are
    asked about twice."""

    def __init__(self, config: dict[str, Any]):
        self.config = config
        self.num_classes = int(config["num_classes"])
        self.net = build_net(config["architecture"])
        self._head = head(self.net, self.num_classes)
        self.feature_size = self._head.in_features
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None

    def logits(self, x: Tensor) -> Tensor:
        return self._both(x)[0]

    def features(self, x: Tensor) -> Tensor:
        return self._both(x)[1]

    def _both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self._seen is not None and self._seen[0] is x:
            return self._seen[1:]
        caught: list[Tensor] = []
        handle = self._head.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
        try:
            logits = self.net(pixel_values=as_the_classifier_wants(x, self.config["image"])).logits
        finally:
            handle.remove()
        features = caught[-1].float().flatten(1)
        self._seen = None if logits.requires_grad else (x, logits, features)
        return logits, features


def as_the_classifier_wants(x: Tensor, image: Mapping[str, Any]) -> Tensor:
    """Samples x (N, 1 or 3, H, W) in [-1, 1], clipped -> resized, cropped and normalised (N, 3, S, S)
    float32."""
    x = (x.float().clamp(-1, 1) + 1) / 2
    if x.shape[1] == 1:
        x = x.expand(-1, 3, -1, -1)
    resize, crop = int(image["resize"]), int(image["crop"])
    if x.shape[-1] != resize:
        mode = image["mode"]
        smooth = {} if mode == "nearest" else {"align_corners": False, "antialias": True}
        x = F.interpolate(x, size=(resize, resize), mode=mode, **smooth).clamp(0, 1)
    start = (resize - crop) // 2
    x = x[:, :, start : start + crop, start : start + crop]
    mean, std = (torch.tensor(image[key], device=x.device).view(1, -1, 1, 1) for key in ("mean", "std"))
    return (x - mean) / std


def describe(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """The judge's config.json from a classifier's config.json and preprocessor_config.json. `ValueError` for
    what is no classifier."""
    architectures = config.get("architectures") or []
    if not any(name.endswith("ForImageClassification") for name in architectures):
        raise ValueError(
            f"got a model of {', '.join(architectures) or 'no known architecture'}, expected an image"
            " classifier of transformers"
        )
    names = [config["id2label"][key] for key in sorted(config.get("id2label") or {}, key=int)]
    return {
        "family": "transformers",
        "architecture": dict(config),
        "image": image_settings(preprocessor, config.get("image_size")),
        "num_classes": len(names),
        "class_names": names,
    }


def image_settings(preprocessor: Mapping[str, Any], image_size: Any = None) -> dict[str, Any]:
    """{resize, crop, mode, mean, std} of a preprocessor_config.json; square images are what we have."""
    side = _side(preprocessor.get("size") or image_size or 224)
    resize = crop = side
    if "crop_pct" in preprocessor and side < 384:  # ConvNeXT: enlarge, then cut the middle
        resize = int(side / preprocessor["crop_pct"])
    elif preprocessor.get("do_center_crop"):
        crop = _side(preprocessor.get("crop_size") or side)
    resize = max(resize, crop)
    normalised = preprocessor.get("do_normalize", True)
    return {
        "resize": resize,
        "crop": crop,
        "mode": MODES.get(preprocessor.get("resample", 2), "bilinear"),
        "mean": list(preprocessor.get("image_mean", [0.5, 0.5, 0.5])) if normalised else [0.0, 0.0, 0.0],
        "std": list(preprocessor.get("image_std", [0.5, 0.5, 0.5])) if normalised else [1.0, 1.0, 1.0],
    }


def build_net(architecture: Mapping[str, Any]) -> nn.Module:
    """The classifier of a config.json, weights not yet loaded; in float32, also one that was published in
    half precision."""
    auto_config, auto_model = auto("AutoModelForImageClassification", "this judge")
    require_no_code(architecture)
    values = {key: value for key, value in architecture.items() if key != "model_type"}
    net = auto_model.from_config(
        auto_config.for_model(architecture["model_type"], **values), trust_remote_code=False
    )
    return net.float().eval()


def load_folder(folder: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the weights of a local classifier folder; `ValueError` when weights are missing."""
    _, auto_model = auto("AutoModelForImageClassification", "this judge")
    require_no_code(json.loads(Path(folder, "config.json").read_text()))
    net, info = auto_model.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"its weights lack {', '.join(missing[:3])}"
            + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        )
    return net.config.to_dict(), dict(net.state_dict())


def require_no_code(config: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a config.json that names a kernel of a hub (`owner/name`), which transformers
    would fetch and run: `trust_remote_code` says nothing of kernels."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            require_no_code({f"{key}.{name}": inner for name, inner in value.items()})
        elif isinstance(value, str) and "/" in value and "_implementation" in key:
            raise ValueError(
                f"its config.json asks for {key} {value!r}, which is code from a hub; expected none: remove"
                " that line"
            )


def head(net: nn.Module, classes: int) -> nn.Linear:
    """The last linear layer with one output a class: what it is given are the features."""
    heads = [
        module for module in net.modules() if isinstance(module, nn.Linear) and module.out_features == classes
    ]
    if not heads:
        raise ValueError(
            f"the classifier has no linear layer with {classes} outputs; expected one as its head"
        )
    return heads[-1]


def _side(size: int | Sequence[int] | Mapping[str, int]) -> int:
    if isinstance(size, Mapping):
        return int(size.get("shortest_edge") or size["height"])
    return int(size) if isinstance(size, int) else int(size[0])


def auto(kind: str, content: str) -> tuple[Any, Any]:
    """AutoConfig and the Auto class `kind` of transformers, which `content` needs."""
    try:
        import transformers
        from transformers.utils import logging
    except ImportError as error:
        raise ImportError(
            f"transformers is missing, {content} needs it: pip install -e '.[diffusers]' in the checkout"
        ) from error
    logging.disable_progress_bar()
    return transformers.AutoConfig, getattr(transformers, kind)
