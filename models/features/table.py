"""The feature spaces that distances between images are taken in, beside the judge's own. A new one is one
file and one line here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from models.features import dinov2, inception


class FeatureSpace(Protocol):
    """A frozen network that describes images by vectors. Judges are such networks too."""

    net: nn.Module
    feature_size: int

    def features(self, x: Tensor) -> Tensor:
        """x (N, 1 or 3, H, W) in [-1, 1] -> (N, F) float32."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """`read` turns a local file or folder into a description and tensors, `build` those into the space, in
    eval mode on the CPU.

    `file` names the file whose SHA-256 is meant. `needs_digest` says why a file may only be read with one,
    None where it need not.
    """

    about: str
    file: Callable[[Path], Path]
    needs_digest: Callable[[Path], str | None]
    read: Callable[[Path], tuple[dict[str, Any], dict[str, Tensor]]]
    build: Callable[[Mapping[str, Any], Mapping[str, Tensor]], FeatureSpace]


SPACES: dict[str, Space] = {
    "inception": Space(
        about=(
            "Inception-v3's last pooling, what published FIDs are measured in: TorchScript, safetensors or"
            " .pth"
        ),
        file=lambda path: path,
        needs_digest=inception.needs_digest,
        read=inception.read,
        build=inception.build,
    ),
    "dinov2": Space(
        about="the class token of a DINOv2 of transformers: folder, URI or Hugging Face id",
        file=dinov2.weights_file,
        needs_digest=lambda path: None,
        read=dinov2.read,
        build=dinov2.build,
    ),
}


def build_space(description: Mapping[str, Any], state: Mapping[str, Tensor]) -> FeatureSpace:
    """The space of a config.json and its weights. Raises `ValueError` for a space that is
    not in the table."""
    name = description.get("space")
    if name not in SPACES:
        raise ValueError(f"config.json: got feature space {name!r}, expected one of {', '.join(SPACES)}")
    return SPACES[name].build(description, state)
