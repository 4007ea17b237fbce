"""Trainable subsets by name. The optimiser, every gradient and every reduction see these parameters and no
others.

P trained parameters in all; classes x D the label table.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from models.generative import GenerativeModel


def select(model: GenerativeModel, name: str) -> dict[str, nn.Parameter]:
    """The parameters of subset `name` (labels_and_adaln:K, adaln:K, labels, all), in the network's order.

    They require gradients afterwards, all others do not. A fixed table (pos_embed) is never among them.
    Raises `ValueError` for an unknown subset or a K the model does not have.
    """
    groups = model.trainable_groups()
    kind, separator, count = name.partition(":")
    if (
        kind not in groups
        or (separator and not count.isdigit())
        or (kind.endswith("adaln") and not separator)
    ):
        raise ValueError(
            f"trainable: got {name!r}, expected one of"
            f" {', '.join(f'{g}:K' if g.endswith('adaln') else g for g in groups)}"
        )
    prefixes = tuple(groups[kind](int(count) if separator else 0))
    parameters = {}
    for key, parameter in model.net.named_parameters():
        parameter.requires_grad_(key.startswith(prefixes))
        if parameter.requires_grad:
            parameters[key] = parameter
    return parameters


def label_parameter(model: GenerativeModel, named: Mapping[str, Tensor]) -> str | None:
    """Which of `named` holds the label table; None when it is not among them or the model takes no labels."""
    table = model.label_table()
    return (
        None
        if table is None
        else next(
            (name for name, parameter in named.items() if parameter.data_ptr() == table.data_ptr()), None
        )
    )


def label_weights(model: GenerativeModel) -> nn.Parameter:
    """The whole table of label embeddings, (classes + 1, D) with the null label last, of a model that takes
    labels."""
    return model.net.get_parameter("y_embedder.embedding_table.weight")


def label_values(model: GenerativeModel) -> Tensor:
    """The numbers of that table, also where the network is sharded; there the call is collective."""
    table = label_weights(model).detach()
    whole = getattr(table, "full_tensor", None)  # of a DTensor; to import its class takes half a second
    return whole() if whole else table


def flat(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """One vector (P,) of `tensors` (None counts as zero), in float32 or, for float64 parameters, float64."""
    dtype = torch.float64 if like[0].dtype == torch.float64 else torch.float32
    return torch.cat(
        [
            (torch.zeros_like(p) if t is None else t).reshape(-1).to(dtype)
            for t, p in zip(tensors, like, strict=True)
        ]
    )


def unflat(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of `vector` (P,) in the shapes and dtypes of `like`."""
    parts = vector.split([p.numel() for p in like])
    return [part.view(p.shape).to(p.dtype) for part, p in zip(parts, like, strict=True)]
