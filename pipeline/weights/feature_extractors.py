"""The feature spaces that a configuration names: fetched, checked, and kept as folders of weights of this
project's own."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline import fetching, storage
from pipeline.config import Extractor
from pipeline.errors import InputError
from pipeline.weights import model_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from models.features.table import FeatureSpace


def read_spaces(extractors: Mapping[str, Extractor]) -> dict[str, model_folder.Stored]:
    """Description and weights of each named space. Raises `InputError` in one line for what cannot be read or
    may not be run."""
    return {name: _read(name, extractor) for name, extractor in extractors.items()}


def kept(spaces: Mapping[str, model_folder.Stored], storage_root: str) -> dict[str, str]:
    """Where workers read the spaces: folders under `storage_root`, written once."""
    return {name: model_folder.kept(stored, storage_root).uri for name, stored in spaces.items()}


def open_space(
    config: Mapping[str, Any], state: Mapping[str, "Tensor"], device: "torch.device"
) -> "FeatureSpace":
    """The space, ready to be asked, on `device`."""
    from models.features.table import build_space

    space = build_space(config, state)
    space.net.to(device)
    return space


def facts(spaces: Mapping[str, model_folder.Stored], judge: model_folder.Stored) -> dict[str, Any]:
    """What a result says of the spaces its distances were taken in: where the weights came from and what they
    are."""
    return {
        name: {"weights": stored.manifest.get("imported_from", stored.uri), "digest": stored.digest}
        for name, stored in {"judge": judge, **spaces}.items()
    }


def _read(name: str, extractor: Extractor) -> model_folder.Stored:
    from models.features.inception import SCRIPT
    from models.features.table import SPACES, build_space
    from models.weights import WeightsError, weights_digest

    key = f"features.{name}.weights"
    if name not in SPACES:
        raise InputError(
            f"features: got {name!r}, expected some of {', '.join(SPACES)} (the judge's own are always there)"
        )
    uri = fetching.locate(extractor.weights)
    own = (
        not uri.startswith(fetching.HUB)
        and not uri.endswith(fetching.FILES)
        and model_folder.manifest_of(uri) is not None
    )
    if own:
        stored = model_folder.read(uri, key, sha256=extractor.sha256)
        if stored.config.get("space") != name:
            raise InputError(
                f"{key}: {uri} holds {stored.config.get('space') or stored.config.get('family')!r}, expected"
                f" {name}"
            )
        if extractor.sha256 is None and stored.config.get("form") == SCRIPT:
            raise InputError(
                f"features.{name}.sha256: got none, and {uri} holds TorchScript, which brings code; expected"
                f" the SHA-256 of its {model_folder.WEIGHTS}"
            )
        return stored
    space = SPACES[name]
    with fetching.fetched(uri, key) as path:
        try:
            fetching.require_sha256(space.file(path), extractor.sha256, key)
            if extractor.sha256 is None and (why := space.needs_digest(path)):
                raise InputError(
                    f"features.{name}.sha256: got none, and {why}; expected the SHA-256 of"
                    f" {storage.absolute(uri)}"
                )
            description, state = space.read(path)
            build_space(description, state)
        except (WeightsError, ImportError, OSError, ValueError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{key}: {' '.join(str(error).split())[:400]}") from error
    return model_folder.Stored(
        uri=uri, config=description, state=state, digest=weights_digest(state), manifest={}, foreign=True
    )
