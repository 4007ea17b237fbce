"""Bare state dicts as others publish them: the families that they can be of, and what their tensors say of
the architecture. DiT and SiT have the same names: only who has the file knows which it is."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from models.dit import DiTConfig
from models.weights import WeightsError

EXPECTED = "expected the names of the published DiT, SiT, REPA, LightningDiT or VAE checkpoints"


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """REPA's first checkpoints call the blocks after the projected one `decoder_blocks`."""
    encoder = {name.split(".")[1] for name in state if name.startswith("blocks.")}

    def today(name: str) -> str:
        return re.sub(r"^decoder_blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) + len(encoder)}", name)

    return {today(name): value for name, value in state.items()}


def families_of(state: Iterable[str]) -> tuple[str, ...]:
    """The families whose state dicts have these names; the likelier first."""
    names = set(state)
    if any(name.startswith("projectors.") for name in names):
        return ("repa",)
    if any(name.startswith("feat_rope.") or ".mlp.w12." in name for name in names):
        return ("lightningdit",)
    return ("dit", "sit")


def architecture_of(state: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The shape of its rows, its classes and what its family's config has beside a size. Raises
    `WeightsError` for tensors of something else."""
    try:
        patches, table = state["x_embedder.proj.weight"], state["y_embedder.embedding_table.weight"]
        positions, last = state["pos_embed"], state["final_layer.linear.bias"]
    except KeyError as error:
        raise WeightsError(f"{where}: lacks {error}; {EXPECTED}") from error
    dimensions = {"x_embedder.proj.weight": 4, "y_embedder.embedding_table.weight": 2, "pos_embed": 3}
    dimensions["final_layer.linear.bias"] = 1
    for name, count in dimensions.items():
        if state[name].dim() != count:
            raise WeightsError(
                f"{where}: {name} has shape {tuple(state[name].shape)}, expected {count} dimensions;"
                f" {EXPECTED}"
            )
    channels, patch = patches.shape[1:3]
    architecture: dict[str, Any] = {
        "input_size": round(positions.shape[1] ** 0.5) * patch,
        "channels": channels,
        "num_classes": len(table) - 1,
        "learn_sigma": len(last) == 2 * channels * patch * patch,
    }
    heads = [state[name] for name in sorted(state) if re.fullmatch(r"projectors\.\d+\.4\.weight", name)]
    if heads:
        widths = {"encoder_widths": [len(head) for head in heads], "projector_width": heads[0].shape[1]}
        architecture |= widths
    if "blocks.0.attn.q_norm.weight" in state:
        architecture["qk_norm"] = True
    return architecture


def size_of(state: Mapping[str, Tensor], sizes: Mapping[str, DiTConfig]) -> str | None:
    """The size whose patch, width and depth the state dict has; None where there is none in the table."""
    width, _, patch, _ = state["x_embedder.proj.weight"].shape
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    return next(
        (name for name, one in sizes.items() if (one.patch, one.width, one.depth) == (patch, width, depth)),
        None,
    )
