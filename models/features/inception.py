"""Inception-v3's features, from either of the two forms in which the FID world ships it.

A TorchScript file, such as `inception-2015-12-05.pt`: takes pixels from 0 to 255 of any size, gives features,
by itself or when its argument `return_features` is set. Or a state dict (safetensors, or .pth of plain
tensors) with the names of torchvision's Inception-v3.

TorchScript brings code. It runs in torch's own interpreter and reaches no Python, but its operators can write
files: such a file is read only when its SHA-256 was given and is the one given.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.features.inception_v3 import FEATURES, SIDE, InceptionV3
from models.weights import WeightsError, is_script, load_into, read_file

SCRIPT = "script"  # the one tensor of a TorchScript file: its bytes
FID_CLASSES = 1008
UNUSED = ("fc.", "AuxLogits.")
KEYWORD = "return_features"


class Scripted:
    """Features of a TorchScript module."""

    def __init__(self, net: Any, keyword: str | None, size: int):
        self.net: nn.Module = net
        self.feature_size = size
        self._options = {keyword: True} if keyword else {}

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        output = self.net(eight_bit(x), **self._options)
        if not isinstance(output, Tensor):
            raise WeightsError(f"it gives a {type(output).__name__}, expected a tensor of features")
        return output.float().flatten(1)


class Inception:
    """Features of Inception-v3 with weights of a state dict."""

    feature_size = FEATURES

    def __init__(self, net: InceptionV3):
        self.net: nn.Module = net

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        # bilinear without antialiasing, as the published figures are made; both sets of weights take [-1, 1]
        resized = F.interpolate(eight_bit(x), size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return self.net(resized / 127.5 - 1).float()


def eight_bit(x: Tensor) -> Tensor:
    """x (N, 1 or 3, H, W) in [-1, 1] -> (N, 3, H, W) float32 of whole numbers from 0 to 255: what a saved
    image would hold."""
    x = ((x.float().clamp(-1, 1) + 1) * 127.5).round()
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x


def needs_digest(path: Path) -> str | None:
    """A TorchScript file is code: it is not run unless it is known to be the one that was meant."""
    return (
        "a TorchScript file brings code, which runs only when it is known which file it is"
        if is_script(path)
        else None
    )


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of the file at `path`. Raises `WeightsError` for what is no Inception."""
    if path.is_dir():
        raise WeightsError(
            f"{path} is a folder, expected Inception's file: TorchScript (.pt), .safetensors or .pth"
        )
    return _read_script(path) if is_script(path) else _read_state(path)


def build(description: Mapping[str, Any], state: Mapping[str, Tensor]) -> Scripted | Inception:
    if description["form"] == SCRIPT:
        return Scripted(
            _load(state[SCRIPT].numpy().tobytes(), "its weights"),
            description["keyword"],
            int(description["features"]),
        )
    net = InceptionV3(fid=description["fid"]).eval().requires_grad_(False)
    load_into(net, state, "inception")
    return Inception(net)


def _read_script(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    data = path.read_bytes()
    net = _load(data, str(path))
    arguments = [argument.name for argument in net.forward.schema.arguments]
    keyword = KEYWORD if KEYWORD in arguments else None
    try:
        probe = Scripted(net, keyword, 0).features(torch.zeros(2, 3, 64, 64))
    except (RuntimeError, TypeError) as error:
        raise WeightsError(
            f"{path}: it cannot be asked for features of images (2, 3, 64, 64): {_line(error)}"
        ) from error
    if probe.shape[0] != 2:
        raise WeightsError(
            f"{path}: it gives {tuple(probe.shape)} for two images, expected a row of features for each"
        )
    description = {"space": "inception", "form": SCRIPT, "keyword": keyword, "features": probe.shape[1]}
    return description, {SCRIPT: torch.frombuffer(bytearray(data), dtype=torch.uint8)}


def _read_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    state = read_file(path, str(path))
    if "fc.bias" not in state:
        raise WeightsError(
            f"{path}: lacks fc.bias, which tells FID's weights ({FID_CLASSES} classes) from torchvision's;"
            " give the whole file"
        )
    fid = len(state["fc.bias"]) == FID_CLASSES
    state = {name: tensor for name, tensor in state.items() if not name.startswith(UNUSED)}
    net = InceptionV3(fid=fid)
    counters = {
        name: tensor for name, tensor in net.state_dict().items() if name.endswith("num_batches_tracked")
    }
    state = counters | state  # older files lack them, and nothing here reads them
    load_into(net, state, str(path))
    return {"space": "inception", "form": "state", "fid": fid, "features": FEATURES}, state


def _load(data: bytes, where: str) -> Any:
    try:
        return torch.jit.load(io.BytesIO(data), map_location="cpu").eval()
    except RuntimeError as error:
        raise WeightsError(
            f"{where}: not a readable TorchScript file ({_line(error)}); fetch it again"
        ) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[-200:]
