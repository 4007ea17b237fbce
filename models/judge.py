"""Classifiers that judge samples. Small ones are trained by jobs/pretrain.py from the same lake."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.resnet_judge import ResNetJudge
from models.transformers_judge import TransformersJudge


class Judge(Protocol):
    net: nn.Module
    config: dict[str, Any]
    num_classes: int
    feature_size: int

    def logits(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) in [-1, 1] -> (N, classes)."""

    def features(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) in [-1, 1] -> (N, F), for Frechet distances."""


class SmallCNN(nn.Module):
    """Three convolutions, two poolings and two linear layers; `width` channels at first. For 8 x 8 pixels and
    up."""

    def __init__(self, channels: int, num_classes: int, size: int, width: int, features: int):
        super().__init__()
        grid = min(size // 4, 4)
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(grid),
            nn.Flatten(),
            nn.Linear(2 * width * grid * grid, features),
            nn.ReLU(),
        )
        self.head = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # (N, classes)


class SmallCNNJudge:
    def __init__(self, config: dict[str, Any]):
        self.config = config
        self.num_classes = int(config["num_classes"])
        self.feature_size = int(config["features"])
        self._cnn = SmallCNN(
            config["channels"], self.num_classes, config["size"], config["width"], config["features"]
        )
        self.net: nn.Module = self._cnn

    def logits(self, x: Tensor) -> Tensor:
        return self._cnn(x)

    def features(self, x: Tensor) -> Tensor:
        return self._cnn.body(x)


class MLP(nn.Module):
    """pixels - hidden - classes with ReLU, on pixels in [0, 1]: the published MNIST classifier, under its
    names."""

    def __init__(self, pixels: int, hidden: int, num_classes: int):
        super().__init__()
        self.fc1 = nn.Linear(pixels, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)

    def features(self, x: Tensor) -> Tensor:
        return self.fc1((x.flatten(1) + 1) / 2).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.features(x))  # (N, classes)


class MLPJudge:
    def __init__(self, config: dict[str, Any]):
        self.config = config
        self.num_classes = int(config["num_classes"])
        self.feature_size = int(config["features"])
        self._mlp = MLP(config["channels"] * config["size"] ** 2, self.feature_size, self.num_classes)
        self.net: nn.Module = self._mlp

    def logits(self, x: Tensor) -> Tensor:
        return self._mlp(x)

    def features(self, x: Tensor) -> Tensor:
        return self._mlp.features(x)


JUDGES: dict[str, Callable[[dict[str, Any]], Judge]] = {
    "small_cnn": SmallCNNJudge,
    "mlp": MLPJudge,
    "resnet": ResNetJudge,
    "transformers": TransformersJudge,
}


def small_cnn_description(
    *, shape: tuple[int, int, int], num_classes: int, class_names: list[str], width: int = 16
) -> dict[str, Any]:
    """The config.json of a small CNN for rows of `shape` (C, H, W)."""
    channels, size, _ = shape
    return {
        "family": "small_cnn",
        "channels": channels,
        "num_classes": num_classes,
        "size": size,
        "width": width,
        "features": 64,
        "class_names": class_names,
    }


def mlp_description(
    *, shape: Sequence[int], num_classes: int, class_names: Sequence[str], features: int = 200
) -> dict[str, Any]:
    """The config.json of an MLP judge with `features` hidden units for rows of `shape` (C, H, W)."""
    channels, size, _ = shape
    names = list(class_names)
    return {
        "family": "mlp",
        "channels": channels,
        "num_classes": num_classes,
        "size": size,
        "features": features,
        "class_names": names,
    }


def describe_mlp(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config.json of the MLP judge whose bare state dict this is, for square grey images. Raises
    `ValueError` for other weights."""
    expected = {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    if state.keys() != expected:
        raise ValueError(
            f"got weights named {', '.join(sorted(state)[:4])}, expected those of an MLP judge:"
            f" {', '.join(sorted(expected))}"
        )
    (features, pixels), classes = state["fc1.weight"].shape, len(state["fc2.bias"])
    side = round(pixels**0.5)
    if side**2 != pixels:
        raise ValueError(f"got an MLP judge of {pixels} pixels, expected a square grey image")
    return mlp_description(
        shape=(1, side, side),
        num_classes=classes,
        class_names=[str(c) for c in range(classes)],
        features=features,
    )


def build_judge(config: dict[str, Any]) -> Judge:
    """The judge that a config.json describes, weights not yet loaded."""
    family = config.get("family")
    if family not in JUDGES:
        raise ValueError(f"judge config.json: got family {family!r}, expected one of {', '.join(JUDGES)}")
    return JUDGES[family](config)


@torch.no_grad()
def initialise(net: nn.Module, generator: torch.Generator) -> None:
    """PyTorch's default initialisation of linear and convolutional layers, from a named seed."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            bound = 1 / module.weight[0].numel() ** 0.5
            module.weight.uniform_(-bound, bound, generator=generator)
            if module.bias is not None:
                module.bias.uniform_(-bound, bound, generator=generator)
