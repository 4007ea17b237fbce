"""Folders of weights: config.json, model.safetensors and, last, manifest.json with digests. Written by pretrain, read by all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS, MANIFEST = "config.json", "model.safetensors", "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A folder of weights that was read: `digest` is that of the values, `manifest` what its maker recorded."""

    uri: str
    config: dict[str, Any]
    state: Mapping[str, "Tensor"]
    digest: str
    manifest: dict[str, Any]


def model_uri(storage_root: str, size: str, lake: str) -> str:
    """Where pretrain.py leaves the model of `size` trained on `lake`."""
    return storage.join(storage_root, "models", f"{size.lower().replace('/', '-')}-{lake.rstrip('/').rsplit('/', 1)[-1]}")


def judge_uri(storage_root: str, lake: str) -> str:
    return storage.join(storage_root, "models", f"judge-{lake.rstrip('/').rsplit('/', 1)[-1]}")


def write(uri: str, config: Mapping[str, Any], state: Mapping[str, "Tensor"], manifest: Mapping[str, Any]) -> str:
    """Write a folder of weights, its manifest last; returns the digest of the values."""
    from models import weights

    digest = weights.weights_digest(state)
    storage.write_bytes(storage.join(uri, WEIGHTS), weights.to_bytes(state))
    storage.write_json(storage.join(uri, CONFIG), dict(config))
    storage.write_json(storage.join(uri, MANIFEST), {"weights_digest": digest, **manifest})
    return digest


def manifest_of(uri: str) -> dict[str, Any] | None:
    """What the maker of the folder recorded; None where there is no complete folder."""
    path = storage.join(uri, MANIFEST)
    return storage.read_json(path) if storage.exists(path) else None


def read(uri: str, what: str) -> Stored:
    """The weights at `uri`, checked against their manifest; `what` ("model.weights", "judge.weights") names the key in errors."""
    from models import weights

    manifest = manifest_of(uri)
    if manifest is None:
        raise InputError(
            f"{what}: no weights at {uri}; make them with "
            "`python jobs/pretrain.py --config jobs/configs/pretrain_<lake>.yaml` or name a folder"
        )
    try:
        state = weights.from_bytes(storage.read_bytes(storage.join(uri, WEIGHTS)), uri)
    except weights.WeightsError as error:
        raise InputError(f"{what}: {error}") from error
    digest = weights.weights_digest(state)
    if digest != manifest["weights_digest"]:
        raise InputError(
            f"{what}: {uri} holds weights {digest[:12]}, its manifest says {manifest['weights_digest'][:12]}; "
            "the folder is damaged, make it again"
        )
    return Stored(uri=uri, config=storage.read_json(storage.join(uri, CONFIG)), state=state, digest=digest, manifest=manifest)
