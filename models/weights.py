"""Weights in and out: safetensors, and published state dicts (`torch.save` of plain tensors), checked against
the model.

Nothing from outside is unpickled: a file made by `torch.save` is read with `weights_only=True`, and must hold
tensors alone.
"""

import argparse
import hashlib
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

# where a training checkpoint has the weights; the first that is there
IN_CHECKPOINT = ("ema", "state_dict", "model")
WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before names
# integers of eight bits and floats of eight: what quantised weights are kept in, beside their scales
PACKED = {
    torch.int8,
    torch.uint8,
    *(getattr(torch, name) for name in dir(torch) if name.startswith("float8_")),
}
LFS_POINTER = b"version https://git-lfs"


class WeightsError(ValueError):
    """Weights that are not what the model needs: one line, for people."""


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values in name order: the same for the same weights in any file
    format."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)  # no copy of it
    return digest.hexdigest()


def to_bytes(state: Mapping[str, Tensor]) -> bytes:
    """`state` as a safetensors file."""
    return safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    )


def from_bytes(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; `where` names it in the error."""
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise WeightsError(
            f"{where}: not a readable safetensors file ({error}); expected weights written by this project or"
            " converted"
        ) from error


def mapped(path: Path, where: str) -> dict[str, Tensor]:
    """The tensors of a local safetensors file where they lie: its pages are read when they are used and
    shared by all processes of the machine that map it. Who writes to a tensor gets pages of its own. The
    file may be replaced or removed meanwhile, not written into. `where` names it in the error."""
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise WeightsError(
            f"{where}: not a readable safetensors file ({error}); expected weights written by this project or"
            " converted"
        ) from error


def read_file(path: Path, where: str) -> dict[str, Tensor]:
    """The tensors of a local file: safetensors, or a state dict that `torch.save` wrote. `where` names it in
    errors.

    A training checkpoint of the published code (`model`, `ema`, ...) gives its averaged weights, as the
    published sampler takes them, or else the trained ones. Raises `WeightsError` for anything that is not
    plain tensors; nothing else is ever unpickled.
    """
    require_no_pointer(path, where)
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:9] == b"{":  # safetensors: eight bytes of length, then a JSON header
        try:
            return plain_tensors(safetensors.torch.load_file(path), where)
        except safetensors.SafetensorError as error:
            raise WeightsError(
                f"{where}: not a readable safetensors file ({error}); fetch it again"
            ) from error
    archived = zipfile.is_zipfile(path)
    if not archived and not start.startswith(b"\x80"):
        raise WeightsError(
            f"{where}: got neither safetensors nor a file of torch.save; expected a published checkpoint,"
            " whole"
        )
    if is_script(path):
        raise WeightsError(f"{where}: refused, it is a TorchScript program; expected a state dict of tensors")
    if archived:
        _require_undamaged(path, where)
    try:
        # what the published training script was called with: names and values, no code
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=archived)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        holds = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f": it names {holds[1]}" if holds else ""
        raise WeightsError(
            f"{where}: refused, this pickle is damaged or holds more than plain tensors{reason}; expected a"
            " state dict of tensors"
        ) from error
    if not isinstance(content, dict):
        return plain_tensors(content, where)
    filled = (key for key in IN_CHECKPOINT if isinstance(content.get(key), dict) and content[key])
    place = next(filled, None)
    state = plain_tensors(content if place is None else content[place], where)
    if place == "model" and any(name.startswith("projectors.") for name in state):
        raise WeightsError(
            f"{where}: a REPA checkpoint without `ema`; expected the averaged weights, as its figures"
            " are of them"
        )
    return state


def _require_undamaged(path: Path, where: str) -> None:
    """Raise `WeightsError` where a part of an archive is not what its checksum says; torch does not look."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise WeightsError(f"{where}: cannot be read ({error}); fetch it again") from error
    if damaged:
        raise WeightsError(f"{where}: is damaged, {damaged} has another checksum; fetch it again")


def require_no_pointer(path: Path, where: str) -> None:
    """Raise `WeightsError` for what a clone without git-lfs has in place of a file."""
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise WeightsError(
            f"{where}: {path.name} is a Git LFS pointer; run `git lfs pull` where it was cloned"
        )


def is_script(path: Path) -> bool:
    """Whether the local file is an archive that holds TorchScript code, which those of
    `torch.save` do not."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def plain_tensors(content: Any, where: str) -> dict[str, Tensor]:
    """`content` as a state dict under the model's own names, half precision widened to float32 (exactly).
    Raises `WeightsError` when it holds anything else."""
    if not isinstance(content, dict) or not content:
        raise WeightsError(
            f"{where}: refused, it holds a {type(content).__name__}; expected a state dict: names and plain"
            " tensors"
        )
    other = [
        f"{name!r} ({_kind(value)})"
        for name, value in content.items()
        if not (isinstance(name, str) and isinstance(value, Tensor) and is_plain(value))
    ]
    if other:
        raise WeightsError(
            f"{where}: refused, not every entry is a tensor: {_some(other)}; expected a state dict of plain"
            " tensors"
        )
    packed = [f"{name} ({value.dtype})" for name, value in content.items() if value.dtype in PACKED]
    if packed:
        raise WeightsError(
            f"{where}: refused, {_some(packed)} is quantised and the scales are not here; expected weights of"
            " 16, 32 or 64 bits"
        )
    broken = [
        name for name, value in content.items() if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise WeightsError(
            f"{where}: refused, {_some(broken)} is not a number (NaN) or without bound; expected trained"
            " weights"
        )
    return {
        name: value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
        for name, value in unwrapped(content).items()
    }


def is_plain(value: Tensor) -> bool:
    """Whether a number is in memory for each place: not sparse, quantised, complex, or a shape alone."""
    return value.layout == torch.strided and not (value.is_meta or value.is_quantized or value.is_complex())


def unwrapped(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """`state` without the prefixes that wrappers gave to all of its names."""
    prefix = next((one for one in WRAPPERS if all(name.startswith(one) for name in state)), None)
    if prefix is None:
        return state
    return unwrapped({name.removeprefix(prefix): tensor for name, tensor in state.items()})


def require_keys(got: Iterable[str], expected: Iterable[str], where: str) -> None:
    """Raise `WeightsError` naming the first few keys that are missing or unknown."""
    got, expected = set(got), set(expected)
    for problem, keys in (("lacks", sorted(expected - got)), ("has unknown", sorted(got - expected))):
        if keys:
            raise WeightsError(f"{where}: {problem} {_some(keys)}; expected the weights of this model size")


def load_into(net: nn.Module, state: Mapping[str, Tensor], where: str, *, shared: bool = False) -> None:
    """Load `state` into `net`; every key must be there with the right shape, and no other. `shared`: the
    network, which may have been built on the meta device, takes these tensors as its own, and is read only.
    """
    expected = net.state_dict()
    require_keys(state, expected, where)
    wrong = [
        f"{key} {tuple(state[key].shape)} for {tuple(tensor.shape)}"
        for key, tensor in sorted(expected.items())
        if state[key].shape != tensor.shape
    ]
    if wrong:
        raise WeightsError(
            f"{where}: has wrong shapes: {_some(wrong)}; expected the weights of this model size"
        )
    counted = [
        f"{key} ({state[key].dtype})"
        for key, tensor in sorted(expected.items())
        if tensor.is_floating_point() and not state[key].is_floating_point()
    ]
    if counted:
        raise WeightsError(f"{where}: has whole numbers for weights: {_some(counted)}; expected floats")
    if shared:  # what is copied is rounded by the copy
        state = {key: state[key].to(tensor.dtype) for key, tensor in expected.items()}
    net.load_state_dict(state, assign=shared)


def _kind(value: Any) -> str:
    plain = not isinstance(value, Tensor) or is_plain(value)
    return type(value).__name__ if plain else f"{value.layout}, {value.dtype}, {value.device}"


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
