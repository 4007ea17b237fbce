"""Folders of weights: config.json, model.safetensors and, last, manifest.json with digests. Written by
pretrain, read by all.

A model of latents has its autoencoder beside it. Weights in published formats are read too (`published.py`),
and kept in this form.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from pipeline import fetching, storage
from pipeline.config.commands import command, config_for
from pipeline.config.reading import CONFIGS, read_yaml
from pipeline.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS, MANIFEST = "config.json", "model.safetensors", "manifest.json"
AUTOENCODER = "autoencoder.safetensors"
BASE_VARIABLE = "UNLEARN_BASE_WEIGHTS"  # in the environment: where the base of a delta lies now


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Weights that were read: `digest` is that of the values, `manifest` what their maker recorded.

    `autoencoder` holds the weights of the autoencoder that `config` describes. `foreign`: in a published
    format, not one of our folders.
    """

    uri: str
    config: dict[str, Any]
    state: Mapping[str, "Tensor"]
    digest: str
    manifest: dict[str, Any]
    autoencoder: Mapping[str, "Tensor"] | None = None
    foreign: bool = False


# folders that somebody in this process holds already, by place and manifest: read and hashed once
_HELD: WeakValueDictionary[tuple[str, str], Stored] = WeakValueDictionary()


def model_uri(storage_root: str, size: str, lake: str) -> str:
    """Where pretrain.py leaves the model of `size` trained on `lake`."""
    return storage.join(
        storage_root, "models", f"{size.lower().replace('/', '-')}-{lake.rstrip('/').rsplit('/', 1)[-1]}"
    )


def no_weights(uri: str, key: str) -> str:
    """What is said of weights that are missing at `uri`: where pretrain.py leaves them, what makes them."""
    root, _, name = uri.rpartition("/models/")
    config = _trained_by(name) or config_for("pretrain", name.rpartition("-")[2] if root else "")
    pretrain = command("pretrain", config, root)
    return f"{key}: no weights at {uri}; make them with `{pretrain}` or name a folder"


def _trained_by(name: str) -> str | None:
    """The configuration of jobs/configs after which pretrain.py leaves a network under `name`: a lake may
    have several, one for each family."""
    for file in sorted(CONFIGS.glob("pretrain_*.yaml")):
        given = read_yaml(str(file))
        places = model_uri("", given["model"]["size"], given["lake"]), judge_uri("", given["lake"])
        if any(place.rpartition("/")[2] == name for place in places):
            return f"jobs/configs/{file.name}"
    return None


def judge_uri(storage_root: str, lake: str) -> str:
    return storage.join(storage_root, "models", f"judge-{lake.rstrip('/').rsplit('/', 1)[-1]}")


def uniformity_judge_uri(storage_root: str, lake: str) -> str:
    """Where pretrain.py leaves a second judge, for the hat term to be trained against."""
    return judge_uri(storage_root, lake).replace("/judge-", "/hat-judge-")


def write(
    uri: str,
    config: Mapping[str, Any],
    state: Mapping[str, "Tensor"],
    manifest: Mapping[str, Any],
    autoencoder: Mapping[str, "Tensor"] | None = None,
) -> str:
    """Write a folder of weights, its manifest last; returns the digest of the values."""
    from models import weights

    digest = weights.weights_digest(state)
    storage.write_bytes(storage.join(uri, WEIGHTS), weights.to_bytes(state))
    if autoencoder is not None:
        storage.write_bytes(storage.join(uri, AUTOENCODER), weights.to_bytes(autoencoder))
        manifest = {"autoencoder_digest": weights.weights_digest(autoencoder), **manifest}
    storage.write_json(storage.join(uri, CONFIG), dict(config))
    storage.write_json(storage.join(uri, MANIFEST), {"weights_digest": digest, **manifest})
    return digest


def write_delta(
    uri: str, base: Stored, trained: Mapping[str, "Tensor"], full_digest: str, manifest: Mapping[str, Any]
) -> None:
    """Write a folder that holds the trained subset alone, and names the base it belongs to by digest. Only
    `read` puts them together."""
    delta = {"base": base.uri, "base_digest": base.digest, "weights_digest": full_digest}
    write(uri, {**base.config, "delta": delta}, trained, manifest)


def manifest_of(uri: str) -> dict[str, Any] | None:
    """What the maker of the folder recorded; None where there is no complete folder."""
    path = storage.join(uri, MANIFEST)
    return storage.read_json(path) if storage.exists(path) else None


def class_count(config: Mapping[str, Any]) -> int:
    """How many classes the model or judge of a config.json knows."""
    return int(config["num_classes"] if "num_classes" in config else config["architecture"]["num_classes"])


def read(uri: str, key: str, *, size: str | None = None, sha256: str | None = None) -> Stored:
    """The weights at `uri`, checked against their manifest; `key` ("model.weights", "judge.weights") names
    the key in errors.

    Published formats are read as well: `size` is what a bare state dict of a DiT is taken for, `sha256` that
    of its file.
    """
    from models import weights
    from pipeline.weights import import_published

    manifest = None if uri.startswith(fetching.HUB) or uri.endswith(fetching.FILES) else manifest_of(uri)
    if manifest is None:
        if import_published.is_published(uri):
            return _read_published(uri, key, size, sha256)
        raise InputError(no_weights(uri, key))
    if sha256 is not None:
        with fetching.fetched(storage.join(uri, WEIGHTS), key) as path:
            fetching.require_sha256(path, sha256, key)
    if not isinstance(manifest.get("weights_digest"), str):
        raise InputError(f"{storage.join(uri, MANIFEST)}: names no weights_digest; {storage.RESTORE}")
    place = (uri, storage.digest_of(manifest))
    if (held := _HELD.get(place)) is not None:
        return held
    try:
        state = _tensors(uri, WEIGHTS)
        autoencoder = _tensors(uri, AUTOENCODER) if "autoencoder_digest" in manifest else None
    except weights.WeightsError as error:
        raise InputError(f"{key}: {error}") from error
    digest = weights.weights_digest(state)
    if digest != manifest["weights_digest"]:
        raise InputError(
            f"{key}: {uri} holds weights {digest[:12]}, its manifest says {manifest['weights_digest'][:12]};"
            " the folder is damaged, make it again"
        )
    config = storage.read_json(storage.join(uri, CONFIG))
    if not any(isinstance(config.get(kind), str) for kind in ("family", "space")):
        raise InputError(f"{storage.join(uri, CONFIG)}: names no family of models; {storage.RESTORE}")
    _require_settings(config, uri, key)
    if "delta" in config:
        return _assembled(uri, key, config, state, manifest)
    stored = Stored(
        uri=uri, config=config, state=state, digest=digest, manifest=manifest, autoencoder=autoencoder
    )
    _HELD[place] = stored
    return stored


def _tensors(uri: str, name: str) -> dict[str, "Tensor"]:
    """Those of a file of the folder: mapped where it is local, else read."""
    from models import weights

    place = storage.join(uri, name)
    if storage.is_local(place):
        return weights.mapped(Path(place.removeprefix("file://")), uri)
    return weights.from_bytes(storage.read_bytes(place), uri)


def _require_settings(config: Mapping[str, Any], uri: str, key: str) -> None:
    """Raise `InputError` for a config.json whose process or sampler is not one of its family's."""
    from models.families.transformer import Transformer
    from models.generative import FAMILIES, build

    family = FAMILIES.get(str(config.get("family")))
    if "sampler" in config and isinstance(family, type) and issubclass(family, Transformer):
        try:
            build(config, device="meta")
        except ValueError as error:
            raise InputError(f"{key}: {uri}/{CONFIG}: {error}") from error


def kept(stored: Stored, storage_root: str) -> Stored:
    """`stored` as one of our own folders: itself, or what was published, written once under
    `<storage_root>/models/`."""
    if not stored.foreign:
        return stored
    identity = {
        "config": stored.config,
        "weights": stored.digest,
        "autoencoder": stored.manifest.get("autoencoder_digest"),
    }
    uri = storage.join(storage_root, "models", f"imported-{storage.digest_of(identity)[:16]}")
    manifest = {**stored.manifest, "imported_from": stored.uri}
    there = manifest_of(uri)
    if there is None:
        write(uri, stored.config, stored.state, manifest, stored.autoencoder)
    elif there.get("weights_digest") != stored.digest:
        raise InputError(
            f"{uri}: holds weights {str(there.get('weights_digest'))[:12]}, expected those imported from"
            f" {stored.uri}, {stored.digest[:12]}; remove the folder"
        )
    return replace(stored, uri=uri, foreign=False, manifest=manifest)


def with_autoencoder(
    stored: Stored, description: Mapping[str, Any], autoencoder: Mapping[str, "Tensor"]
) -> Stored:
    """`stored` with another autoencoder beside it; to be `kept`."""
    from models import weights

    manifest = {**stored.manifest, "autoencoder_digest": weights.weights_digest(autoencoder)}
    config = {**stored.config, "autoencoder": dict(description)}
    return replace(stored, config=config, autoencoder=autoencoder, manifest=manifest, foreign=True)


def _assembled(
    uri: str, key: str, config: dict[str, Any], trained: Mapping[str, "Tensor"], manifest: dict[str, Any]
) -> Stored:
    """A delta on its base, the one under its own storage root first. Raises `InputError` when the base is
    another than the one it was trained from."""
    from models import version_files, weights

    delta = config["delta"]
    own = version_files.in_same_root(uri, delta["base"])
    base_uri = own if own and manifest_of(own) is not None else delta["base"]
    base_uri = os.environ.get(BASE_VARIABLE, base_uri)
    base = read(base_uri, f"{key}: the base of the delta {uri}")
    if base.digest != delta["base_digest"]:
        raise InputError(
            f"{key}: {uri} is a delta on a base of digest {delta['base_digest'][:12]}, but {base_uri} has"
            f" {base.digest[:12]}; expected that base: name its folder in {BASE_VARIABLE}"
        )
    state = {**base.state, **trained}
    digest = weights.weights_digest(state)
    if digest != delta["weights_digest"]:
        raise InputError(
            f"{key}: {uri} on its base has digest {digest[:12]}, expected {delta['weights_digest'][:12]};"
            " the folder is damaged"
        )
    plain = {name: value for name, value in config.items() if name != "delta"}
    return Stored(
        uri=uri, config=plain, state=state, digest=digest, manifest=manifest, autoencoder=base.autoencoder
    )


def _read_published(uri: str, key: str, size: str | None, sha256: str | None) -> Stored:
    from models import weights
    from pipeline.weights import import_published

    autoencoder = None
    if "judge" in key:
        config, state = import_published.read_judge(uri, key, sha256)
    else:
        config, state, autoencoder = import_published.read_model(uri, key, size, sha256)
    manifest = {} if autoencoder is None else {"autoencoder_digest": weights.weights_digest(autoencoder)}
    return Stored(
        uri=uri,
        config=config,
        state=state,
        digest=weights.weights_digest(state),
        manifest=manifest,
        autoencoder=autoencoder,
        foreign=True,
    )
