"""A small residual network as a judge of colour images: what CIFAR-10 needs where three convolutions are not
enough.

Two residual blocks between three poolings (the shape of the nine-layer networks of the DAWNBench entries),
batch norm, largest values over the plane before the head. `width` is the number of channels of the first
layer; the last has eight times as many.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 0.125  # of the logits, so that the first steps are not too sure of themselves


def _layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(_layer(width, width), _layer(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ResNet(nn.Module):
    def __init__(self, channels: int, num_classes: int, width: int):
        super().__init__()
        self.body = nn.Sequential(
            _layer(channels, width),
            _layer(width, 2 * width),
            nn.MaxPool2d(2),
            Residual(2 * width),
            _layer(2 * width, 4 * width),
            nn.MaxPool2d(2),
            _layer(4 * width, 8 * width),
            nn.MaxPool2d(2),
            Residual(8 * width),
        )
        self.head = nn.Linear(8 * width, num_classes, bias=False)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x.contiguous(memory_format=torch.channels_last)).amax(dim=(2, 3))  # (N, 8 width)

    def forward(self, x: Tensor) -> Tensor:
        return SCALE * self.head(self.features(x))  # (N, classes)


class ResNetJudge:
    def __init__(self, config: dict[str, Any]):
        self.config = config
        self.num_classes = int(config["num_classes"])
        self.feature_size = 8 * int(config["width"])
        self._resnet = ResNet(int(config["channels"]), self.num_classes, int(config["width"]))
        self.net: nn.Module = self._resnet

    def logits(self, x: Tensor) -> Tensor:
        return self._seen(self._resnet, x)

    def features(self, x: Tensor) -> Tensor:
        return self._seen(self._resnet.features, x)

    def _seen(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`function` of x or, with `mirror` and once trained, its mean over x and its mirror image."""
        if self.net.training or not self.config.get("mirror"):
            return function(x)
        return (function(x) + function(x.flip(-1))) / 2


def resnet_description(
    *, shape: tuple[int, int, int], num_classes: int, class_names: list[str], width: int, mirror: bool = False
) -> dict[str, Any]:
    """The config.json of a residual judge for rows of `shape` (C, H, W). Raises `ValueError` for images too
    small for its poolings.

    With `mirror` it judges every image together with its mirror image.
    """
    channels, size, _ = shape
    if size < 16:
        raise ValueError(
            f"judge.net: got resnet for images of {size} pixels, expected at least 16; use small_cnn"
        )
    return {
        "family": "resnet",
        "channels": channels,
        "num_classes": num_classes,
        "size": size,
        "width": width,
        "features": 8 * width,
        "class_names": class_names,
        **({"mirror": True} if mirror else {}),
    }


def shifted(x: Tensor, by: Tensor, most: int) -> Tensor:
    """x (N, C, H, W) with each image moved by its row of `by` (N, 2) in [0, 2 most] less `most`, mirrored at
    the rim."""
    height, width = x.shape[2:]
    padded = F.pad(x, (most,) * 4, mode="reflect")
    return torch.stack(
        [image[:, r : r + height, c : c + width] for image, (r, c) in zip(padded, by.tolist(), strict=True)]
    )


@torch.no_grad()
def recalibrate(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Batch norm's statistics anew, as means over `batches`: those of averaged weights are not the average of
    those on the way."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
    net.train()
    for x in batches:
        net(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.eval()
