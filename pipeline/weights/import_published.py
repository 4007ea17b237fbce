"""Weights made elsewhere, in the formats they are published in, read as this project's own: a description and
tensors.

A DiT, SiT, REPA or LightningDiT as the published state dict (.pt, .safetensors), a DiT also as a diffusers
DiTPipeline folder; a judge as a transformers folder; all from a local path, any fsspec URI, or a Hugging Face
repository (`owner/name` or `hf://owner/name`).
"""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.errors import InputError
from pipeline.fetching import FILES, HUB, fetched, require_sha256

if TYPE_CHECKING:
    from torch import Tensor

INDEX, CONFIG = "model_index.json", "config.json"
NET_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
JUDGE_FILES = ("model.safetensors", "pytorch_model.bin")
PREPROCESSOR = "preprocessor_config.json"
SCHEDULES = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
SAMPLER = {"cfg_scale": 4.0, "steps": 50}  # the published guidance
GUIDANCE = ("cfg_scale", "guided_channels", "guidance_interval", "shift")  # of a flow's published sampler


def is_published(uri: str) -> bool:
    """Whether `uri` is in one of the published formats, and no folder of this project's own."""
    if uri.startswith(HUB) or uri.endswith(FILES):
        return True
    if storage.exists(storage.join(uri, INDEX)):
        return True
    config = storage.join(uri, CONFIG)
    return storage.exists(config) and not {"model_type", "_class_name"}.isdisjoint(storage.read_json(config))


def read_model(
    uri: str, key: str, size: str | None, sha256: str | None
) -> tuple[dict[str, Any], dict[str, "Tensor"], dict[str, "Tensor"] | None]:
    """Description, weights and, where it comes with one, the autoencoder's weights of the DiT at `uri`.

    `size` is the model.size of a bare state dict; `sha256` that of the file with the DiT's weights. `key`
    names the key in errors.
    """
    from models.weights import WeightsError

    with fetched(uri, key) as path:
        try:
            if path.is_dir():
                return _pipeline(path, uri, key, sha256)
            description, state = _state_dict(path, uri, key, size, sha256)
            return description, state, None
        except (WeightsError, ImportError) as error:
            raise InputError(f"{key}: {error}") from error


def read_autoencoder(
    uri: str, key: str, sha256: str | None = None
) -> tuple[dict[str, Any], dict[str, "Tensor"]]:
    """Description and weights of the AutoencoderKL folder at `uri`, or of the `vae` in the pipeline folder at
    `uri`."""
    from safetensors import SafetensorError

    from models.latents import describe_autoencoder, load_autoencoder

    with fetched(uri, key) as path:
        folder = path / "vae" if (path / "vae").is_dir() else path
        if not (folder / CONFIG).is_file() or not any((folder / name).is_file() for name in NET_FILES):
            raise InputError(
                f"{key}: {uri} is no diffusers AutoencoderKL folder; expected {CONFIG} and {NET_FILES[0]}"
            )
        require_sha256(_weights_file(folder, NET_FILES, uri, key), sha256, key)
        try:
            autoencoder = load_autoencoder(str(folder))
        except (ImportError, OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(f"{key}: {uri} cannot be read as an AutoencoderKL ({_line(error)})") from error
        return describe_autoencoder(autoencoder), dict(autoencoder.state_dict())


def read_judge(uri: str, key: str, sha256: str | None) -> tuple[dict[str, Any], dict[str, "Tensor"]]:
    """Description and weights of the transformers image classifier at `uri`, or of the file of an MLP's
    weights there."""
    from safetensors import SafetensorError

    from models.judge import describe_mlp
    from models.transformers_judge import describe, load_folder
    from models.weights import WeightsError, plain_tensors, read_file

    with fetched(uri, key) as path:
        if path.is_file():
            require_sha256(path, sha256, key)
            try:
                mlp = read_file(path, uri)
                return describe_mlp(mlp), mlp
            except (WeightsError, ValueError) as error:
                raise InputError(f"{key}: {uri}: {_line(error)}") from error
        if not path.is_dir() or not (path / CONFIG).is_file():
            raise InputError(
                f"{key}: {uri} is no image classifier; expected a transformers folder with {CONFIG} and"
                f" {JUDGE_FILES[0]}"
            )
        preprocessor = storage.read_json(str(path / PREPROCESSOR)) if (path / PREPROCESSOR).is_file() else {}
        file = _weights_file(path, JUDGE_FILES, uri, key)
        require_sha256(file, sha256, key)
        try:
            config, state = load_folder(str(path))
            return describe(config, preprocessor), plain_tensors(state, uri)
        except (
            *(ImportError, OSError, ValueError, RuntimeError, SafetensorError),
            *(
                UnpicklingError,
                AttributeError,
                TypeError,
                KeyError,
            ),  # of a pickle, or a config of another form
        ) as error:
            raise InputError(
                f"{key}: {uri} cannot be read as an image classifier ({type(error).__name__}: {_line(error)})"
            ) from error


def _state_dict(
    path: Path, uri: str, key: str, size: str | None, sha256: str | None
) -> tuple[dict[str, Any], dict[str, "Tensor"]]:
    from models.families.published import renamed
    from models.vae import describe_state
    from models.weights import read_file

    require_sha256(path, sha256, key)
    state = read_file(path, uri)
    beside = storage.join(uri.rsplit("/", 1)[0], f"{path.stem}.json")  # what our own export writes
    own = storage.read_json(beside) if storage.exists(beside) else None
    if isinstance(own, dict) and "family" in own:  # another's notes may have that name as well
        _require_description(own, beside, key)
        return own, state
    vae = describe_state(state)
    if vae is not None:
        return vae, state
    return _transformer(renamed(state), uri, key, size)


def _require_description(own: Mapping[str, Any], place: str, key: str) -> None:
    """Raise `InputError` unless the model can be built that `own` describes."""
    from models.generative import build

    try:
        build(own, device="meta")
        absent = "" if "class_names" in own or own["family"] == "vae" else "no class_names"
    except (KeyError, TypeError, ValueError) as error:
        absent = f"no {error}" if isinstance(error, KeyError) else _line(error)
    if absent:
        raise InputError(
            f"{key}: {place}: {absent}; expected the description that was exported beside the weights;"
            " without that file they are taken for a published model's"
        )


def _transformer(
    state: dict[str, "Tensor"], uri: str, key: str, size: str | None
) -> tuple[dict[str, Any], dict[str, "Tensor"]]:
    """A state dict under one of the published transformers' names, as the family that `size` is of; without
    one, as the likeliest."""
    from models.families.published import architecture_of, families_of, size_of
    from models.generative import FAMILIES, family_of

    architecture = architecture_of(state, uri)
    possible = families_of(state)
    sizes = {name: size_of(state, FAMILIES[name].sizes) for name in possible}  # type: ignore[arg-type]
    try:
        wanted = family_of(size) if size else FAMILIES[possible[0]]
    except ValueError as error:
        raise InputError(f"{key}: {error}") from error
    family = next(name for name, one in FAMILIES.items() if one is wanted)
    if family not in possible:
        known = ", ".join(name for name in sizes.values() if name) or "one of its sizes"
        raise InputError(
            f"{key}: {uri} looks like a model of family {' or '.join(possible)}, but model.size is {size};"
            f" expected {known}"
        )
    chosen = size or sizes[family] or "DiT-XL/2"
    shape = (architecture["channels"], architecture["input_size"], architecture["input_size"])
    classes = architecture["num_classes"]
    if family == "dit":
        learned = architecture["learn_sigma"]
        return _description(chosen, shape, classes, learn_sigma=learned, key=key), state
    published: Mapping[str, Any] = FAMILIES[family].published  # type: ignore[attr-defined]
    sampler = {setting: published[setting] for setting in GUIDANCE if setting in published}
    try:
        description = FAMILIES[family].describe(
            chosen,
            shape=shape,
            class_names=_class_names(classes),
            latent=shape[0] >= 4,
            architecture=architecture,
            sampler={"name": "euler", "steps": SAMPLER["steps"], **sampler},
        )
    except ValueError as error:
        raise InputError(f"{key}: {error}") from error
    return description, state


def _pipeline(
    path: Path, uri: str, key: str, sha256: str | None
) -> tuple[dict[str, Any], dict[str, "Tensor"], dict[str, "Tensor"] | None]:
    from models.diffusers_names import architecture_of, from_diffusers
    from models.dit import dit_config
    from models.export import DESCRIPTION, POSITIONS
    from models.weights import read_file

    index = storage.read_json(str(path / INDEX)) if (path / INDEX).is_file() else {}
    transformer = path / "transformer" if (path / "transformer").is_dir() else path
    file = _weights_file(transformer, NET_FILES, uri, key)
    require_sha256(file, sha256, key)
    own = storage.read_json(str(path / DESCRIPTION)) if index and (path / DESCRIPTION).is_file() else None
    if own is not None:  # our own export: nothing has to be guessed
        description = own
    else:
        size, more = architecture_of(storage.read_json(str(transformer / CONFIG)), uri)
        names = [index["id2label"][label] for label in sorted(index.get("id2label") or {}, key=int)]
        shape = (more["channels"], more["input_size"], more["input_size"])
        description = _description(
            size,
            shape,
            len(names) or more["num_classes"],
            learn_sigma=more["learn_sigma"],
            key=key,
            names=names,
        )
        description |= _schedule(path, uri)
    config = dit_config(description["size"], **description["architecture"])
    state = from_diffusers(read_file(file, uri), config, uri)
    if (path / POSITIONS).is_file():
        state |= read_file(path / POSITIONS, uri)
    latent = "autoencoder" in description if own is not None else (path / "vae").is_dir()
    if not latent:
        return description, state, None
    autoencoder_config, autoencoder = read_autoencoder(str(path), key)
    return description | {"autoencoder": autoencoder_config}, state, autoencoder


def _schedule(path: Path, uri: str) -> dict[str, Any]:
    from models.weights import WeightsError

    file = path / "scheduler" / "scheduler_config.json"
    scheduler: Mapping[str, Any] = storage.read_json(str(file)) if file.is_file() else {}
    name, start, end = (
        scheduler.get(key, value)
        for key, value in (("beta_schedule", "linear"), ("beta_start", 1e-4), ("beta_end", 0.02))
    )
    if (
        name not in SCHEDULES
        or (name == "linear" and (start, end) != (1e-4, 0.02))
        or scheduler.get("prediction_type", "epsilon") != "epsilon"
    ):
        raise WeightsError(
            f"{uri}: its scheduler ({name}, {start} to {end}) is none of DiT's; expected linear 0.0001 to"
            " 0.02, predicting epsilon"
        )
    return {"schedule": SCHEDULES[name], "timesteps": int(scheduler.get("num_train_timesteps", 1000))}


def _description(
    size: str,
    shape: tuple[int, int, int],
    classes: int,
    *,
    learn_sigma: bool,
    key: str,
    names: list[str] | None = None,
) -> dict[str, Any]:
    from models.generative import dit_description

    names = names or _class_names(classes)
    try:
        return dit_description(
            size,
            shape=shape,
            num_classes=classes,
            class_names=names,
            latent=shape[0] == 4,
            schedule="linear",
            learn_sigma=learn_sigma,
            sampler=dict(SAMPLER),
        )
    except ValueError as error:
        raise InputError(f"{key}: {error}") from error


def _class_names(classes: int) -> list[str]:
    from models.imagenet import class_lines

    if classes == 1000:
        return [line.partition(" ")[2] for line in class_lines()]
    return [str(label) for label in range(classes)]


def _weights_file(folder: Path, names: tuple[str, ...], uri: str, key: str) -> Path:
    from models.weights import WeightsError, require_no_pointer

    for name in names:
        if (folder / name).is_file():
            try:
                require_no_pointer(folder / name, uri)
            except WeightsError as error:
                raise InputError(f"{key}: {error}") from error
            return folder / name
    raise InputError(f"{key}: {uri} has no weights; expected {' or '.join(names)} in {folder.name}/")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
