"""Weights as bytes: safetensors in and out, checked against the model, with a digest of the values themselves."""

import hashlib
from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn


class WeightsError(ValueError):
    """Weights that are not what the model needs: one line, for people."""


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values in name order: the same for the same weights in any file format."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.dim() else tensor.reshape(1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def to_bytes(state: Mapping[str, Tensor]) -> bytes:
    """`state` as a safetensors file."""
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})


def from_bytes(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; `where` names it in the error."""
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise WeightsError(
            f"{where}: not a readable safetensors file ({error}); expected weights written by this project or converted"
        ) from error


def load_into(net: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load `state` into `net`; every key must be there with the right shape, and no other."""
    wanted = net.state_dict()
    missing = sorted(wanted.keys() - state.keys())
    extra = sorted(state.keys() - wanted.keys())
    wrong = [
        f"{key} {tuple(state[key].shape)} for {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & state.keys())
        if state[key].shape != wanted[key].shape
    ]
    for problem, keys in (("lacks", missing), ("has unknown", extra), ("has wrong shapes:", wrong)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise WeightsError(f"{where}: {problem} {', '.join(keys[:3])}{more}; expected the weights of this model size")
    net.load_state_dict(state)
