"""A DiT's weights under diffusers' names (`DiTTransformer2DModel`) and back, to the bit. Tensors only:
diffusers is not needed.

There, every block has its own copy of the timestep network and of the label table, and the attention's three
matrices are apart.
`DiTPipeline` always asks for label 1000 as the null label: tables of models with fewer classes are filled up
to it with the null row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from models.dit import SIZES, DiTConfig, sincos_position
from models.weights import WeightsError, require_keys

PIPELINE_NULL = 1000  # the null label that DiTPipeline asks for
SHARED = {
    "t_embedder.mlp.0": "norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "norm1.emb.timestep_embedder.linear_2",
}
BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
OUTER = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
TABLE, THEIR_TABLE = "y_embedder.embedding_table.weight", "norm1.emb.class_embedder.embedding_table.weight"
KINDS = ("weight", "bias")


def transformer_config(config: DiTConfig) -> dict[str, Any]:
    """The arguments of a DiTTransformer2DModel of this architecture. Raises `WeightsError` for one that it
    cannot be."""
    if config.pos_std is not None:
        raise WeightsError(
            "diffusers' DiT computes its positions (sines and cosines), this model has learned ones; export"
            " it as a state dict instead"
        )
    if config.num_classes > PIPELINE_NULL:
        raise WeightsError(
            f"got {config.num_classes} classes, expected at most {PIPELINE_NULL}: DiTPipeline's null label is"
            f" {PIPELINE_NULL}"
        )
    return {
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "in_channels": config.channels,
        "out_channels": config.channels * (2 if config.learn_sigma else 1),
        "num_layers": config.depth,
        "sample_size": config.input_size,
        "patch_size": config.patch,
        "num_embeds_ada_norm": PIPELINE_NULL,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
    }


def architecture_of(config: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """The size and the overrides of `dit_config` that a transformer's config.json comes to."""
    try:
        heads, channels = int(config["num_attention_heads"]), int(config["in_channels"])
        own = {
            "patch": int(config["patch_size"]),
            "width": heads * int(config["attention_head_dim"]),
            "depth": int(config["num_layers"]),
            "heads": heads,
        }
        more = {
            "input_size": int(config["sample_size"]),
            "channels": channels,
            "num_classes": int(config["num_embeds_ada_norm"]),
            "learn_sigma": int(config.get("out_channels") or channels) == 2 * channels,
        }
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{where}: its transformer/config.json is not a DiT's ({error}); expected a diffusers DiTPipeline"
            " folder"
        ) from error
    fixed = {
        "norm_type": "ada_norm_zero",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "norm_elementwise_affine": False,
    }
    wrong = [f"{key} {config[key]!r}" for key, value in fixed.items() if config.get(key, value) != value]
    if wrong:
        raise WeightsError(
            f"{where}: another architecture ({', '.join(wrong)}); expected a DiT with adaLN-Zero"
        )
    sizes = [
        name for name, size in SIZES.items() if own.items() <= asdict(size).items() and size.pos_std is None
    ]
    if not sizes:
        raise WeightsError(f"{where}: no known size has {own}; expected one of {', '.join(SIZES)}")
    best = next((name for name in sizes if more.items() <= asdict(SIZES[name]).items()), sizes[0])
    return best, more


def to_diffusers(state: Mapping[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """`state` (published names) as the state dict of a DiTTransformer2DModel of
    `transformer_config(config)`."""
    theirs = {f"{OUTER[name]}.{kind}": state[f"{name}.{kind}"] for name in OUTER for kind in KINDS}
    table = state[TABLE]  # (classes + 1, D), the null label last
    filler = table[-1:].expand(PIPELINE_NULL - config.num_classes, -1)
    table = torch.cat([table[:-1], filler, table[-1:]])
    for index in range(config.depth):
        own, block = f"blocks.{index}", f"transformer_blocks.{index}"
        theirs[f"{block}.{THEIR_TABLE}"] = table
        for kind in KINDS:
            theirs |= {f"{block}.{there}.{kind}": state[f"{here}.{kind}"] for here, there in SHARED.items()}
            theirs |= {
                f"{block}.{there}.{kind}": state[f"{own}.{here}.{kind}"] for here, there in BLOCK.items()
            }
            parts = state[f"{own}.attn.qkv.{kind}"].chunk(3)
            theirs |= {
                f"{block}.attn1.to_{letter}.{kind}": part for letter, part in zip("qkv", parts, strict=True)
            }
    return theirs


def from_diffusers(theirs: Mapping[str, Tensor], config: DiTConfig, where: str) -> dict[str, Tensor]:
    """The inverse of `to_diffusers`, positions computed. Raises `WeightsError` when keys do not fit or the
    blocks' copies differ."""
    require_keys(theirs, _their_keys(config.depth), where)
    state = {f"{name}.{kind}": theirs[f"{OUTER[name]}.{kind}"] for name in OUTER for kind in KINDS}
    for index in range(config.depth):
        own, block = f"blocks.{index}", f"transformer_blocks.{index}"
        for kind in KINDS:
            state |= {
                f"{own}.{here}.{kind}": theirs[f"{block}.{there}.{kind}"] for here, there in BLOCK.items()
            }
            state[f"{own}.attn.qkv.{kind}"] = torch.cat(
                [theirs[f"{block}.attn1.to_{letter}.{kind}"] for letter in "qkv"]
            )
    for here, there in SHARED.items():
        for kind in KINDS:
            state[f"{here}.{kind}"] = _same_in_every_block(
                theirs, f"{there}.{kind}", config.depth, "timestep networks", where
            )
    table = _same_in_every_block(theirs, THEIR_TABLE, config.depth, "label tables", where)
    filler = table[config.num_classes : -1]
    if not torch.equal(filler, table[-1:].expand_as(filler)):
        raise WeightsError(
            f"{where}: its label table has {len(table) - 1} labels of its own, its names"
            f" {config.num_classes}; expected a name for each"
        )
    state[TABLE] = torch.cat([table[: config.num_classes], table[-1:]])
    state["pos_embed"] = sincos_position(config.width, config.input_size // config.patch)
    return state


def _same_in_every_block(
    theirs: Mapping[str, Tensor], name: str, depth: int, content: str, where: str
) -> Tensor:
    first = theirs[f"transformer_blocks.0.{name}"]
    for index in range(1, depth):
        other = theirs[f"transformer_blocks.{index}.{name}"]
        if not torch.equal(first, other):
            rows = (
                f" (row {_first_difference(first, other)})"
                if other.shape == first.shape and first.dim() == 2
                else ""
            )
            raise WeightsError(
                f"{where}: the {content} of blocks 0 and {index} differ{rows}; expected one that all blocks"
                " share, as in the published model: a fine-tuned copy in each block cannot be mapped back"
            )
    return first


def _first_difference(first: Tensor, other: Tensor) -> int:
    return int((first != other).any(dim=1).nonzero()[0])


def _their_keys(depth: int) -> Sequence[str]:
    inner = [*SHARED.values(), *BLOCK.values(), *(f"attn1.to_{letter}" for letter in "qkv")]
    return [
        *(f"{name}.{kind}" for name in OUTER.values() for kind in KINDS),
        *(f"transformer_blocks.{i}.{name}.{kind}" for i in range(depth) for name in inner for kind in KINDS),
        *(f"transformer_blocks.{i}.{THEIR_TABLE}" for i in range(depth)),
    ]
