"""What a main job starts from: the base model with its decoder, the judge, and how its
step fits the device."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline import fetching, storage
from pipeline.config import Judge, UnlearnConfig
from pipeline.config.unlearn import Decoder
from pipeline.data.lake import Lake
from pipeline.errors import InputError
from pipeline.runs import registered
from pipeline.runs.request_checks import with_own_settings
from pipeline.weights import decoder, import_published, model_folder

BuiltT = TypeVar("BuiltT")

if TYPE_CHECKING:
    from pipeline.runs.memory_plan import Choice, MemoryPlan


def read_base(config: UnlearnConfig, lake: Lake) -> model_folder.Stored:
    """The base model that `config` names, with its decoder where the lake holds latents."""
    from models.judge import JUDGES

    if registered.named(config.model.weights):
        uri = str(config.model.weights)
        version = registered.find(config.tracking, config.storage, uri, "model.weights")
        base = registered.read(config.tracking, config.storage, version, "model.weights")
    else:
        uri = model_folder.model_uri(config.storage, config.model.size, config.lake)
        if config.model.weights:
            uri = fetching.locate(config.model.weights)
        base = model_folder.read(uri, "model.weights", size=config.model.size, sha256=config.model.sha256)
    if base.config.get("family") in JUDGES:
        raise InputError(
            f"model.weights: {uri} holds a judge ({base.config['family']}), expected a {config.model.size}"
        )
    if base.config.get("size") != config.model.size:
        raise InputError(
            f"model.size: got {config.model.size}, but {uri} holds a {base.config.get('size')}; set"
            " model.size to that"
        )
    names = [item.name for item in lake.manifest.classes]
    if base.foreign and len(names) == len(base.config["class_names"]):
        base.config["class_names"] = names
    return with_decoder(base, lake, config.encoder)


def with_decoder(model: model_folder.Stored, lake: Lake, encoder: Decoder) -> model_folder.Stored:
    """`model` with the decoder that turns its samples into the images of `lake`: `encoder`, or what it came
    with; nothing for pixels."""
    if lake.manifest.kind != "latent":
        return model
    require_statistics(model.config, lake)
    if encoder.weights:
        description, state = import_published.read_autoencoder(
            fetching.locate(encoder.weights), "encoder.weights", encoder.sha256
        )
        model = model_folder.with_autoencoder(model, in_units_of(lake, description), state)
    if model.autoencoder is None:
        raise InputError(
            f"encoder.weights: lake {lake.manifest.name!r} holds latents and {model.uri} came without a"
            " decoder; expected the AutoencoderKL that the lake was made with, such as"
            " stabilityai/sd-vae-ft-mse"
        )
    require_decoder(model.config, lake)
    return model


def require_statistics(config: dict[str, Any], lake: Lake) -> None:
    """Raise `InputError` unless the lake's latents are normalised as the model's were."""
    from models.generative import FAMILIES

    name, own = lake.manifest.name, lake.manifest.encoder.statistics
    if own is None and getattr(FAMILIES[config["family"]], "per_channel", False):
        raise InputError(
            f"lake: {name!r} has no latent statistics, which a {config['size']} was trained with; prepare it"
            " with --set encoder.statistics=<mean and std of each channel>"
        )
    recorded = config.get("autoencoder")
    if recorded is not None and recorded.get("statistics") != (own and own.model_dump()):
        raise InputError(
            f"lake: the latents of {name!r} are normalised by other statistics than the model's; expected a"
            " lake that was prepared with the same encoder.statistics"
        )


def in_units_of(lake: Lake, description: dict[str, Any]) -> dict[str, Any]:
    """The autoencoder's description, for a model of the lake's latents where these have statistics."""
    encoder = lake.manifest.encoder
    if encoder.statistics is None:
        return description
    return description | {"scale": encoder.scale, "statistics": encoder.statistics.model_dump()}


def require_decoder(config: dict[str, Any], lake: Lake) -> None:
    """Raise `InputError` when the autoencoder of a model's config.json does not turn the lake's latents into
    the lake's images."""
    from models.latents import latent_shape

    description, manifest = config["autoencoder"], lake.manifest
    size = int(manifest.preprocessing.get("size") or manifest.shape[1] * decoder.factor(description))
    try:
        shape = latent_shape(description["config"], size)
    except ValueError as error:
        raise InputError(f"encoder.weights: {error}") from error
    if list(shape) != manifest.shape:
        raise InputError(
            f"encoder.weights: its latents of {size} pixels are {shape}, but lake {manifest.name!r} holds"
            f" {tuple(manifest.shape)}; expected the autoencoder that the lake was made with"
        )
    if abs(description["scale"] - manifest.encoder.scale) > 1e-6:
        raise InputError(
            f"encoder.weights: its scale is {description['scale']}, the lake was made with"
            f" {manifest.encoder.scale}"
        )


def built(build: Callable[[dict[str, Any]], BuiltT], stored: model_folder.Stored) -> BuiltT:
    """What the config.json of `stored` describes. Raises `InputError` where it describes nothing that can be
    built."""
    try:
        return build(stored.config)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{storage.join(stored.uri, model_folder.CONFIG)}: describes no model ({type(error).__name__}:"
            f" {error}); {storage.RESTORE}"
        ) from error


def read_judge(config: UnlearnConfig) -> model_folder.Stored:
    """The judge that `config` names."""
    return judge_at(config.judge, config.storage, config.lake)


def read_uniformity_judge(config: UnlearnConfig) -> model_folder.Stored | None:
    """The judge that the hat term trains against; None where it is off, or where there is none but the judge
    that measures."""
    if not config.method.uniformity_weight:
        return None
    section = config.uniformity_judge
    uri = (
        fetching.locate(section.weights)
        if section.weights
        else model_folder.uniformity_judge_uri(config.storage, config.lake)
    )
    if not section.weights and model_folder.manifest_of(uri) is None:
        return None
    return model_folder.read(uri, "uniformity_judge.weights", sha256=section.sha256)


def judge_at(judge: Judge, storage_root: str, lake: str) -> model_folder.Stored:
    """The judge that a configuration's section names, or the one that was trained on `lake`."""
    uri = fetching.locate(judge.weights) if judge.weights else model_folder.judge_uri(storage_root, lake)
    return model_folder.read(uri, "judge.weights", sha256=judge.sha256)


def require_same_names(lake: Lake, judge: model_folder.Stored) -> None:
    """Raise `InputError` when a judge made elsewhere gives its classes other names than the lake: another
    order would judge nonsense."""
    if judge.config.get("family") != "transformers":
        return
    theirs, ours = judge.config["class_names"], [item.name for item in lake.manifest.classes]
    different = [label for label, (a, b) in enumerate(zip(theirs, ours)) if not _same_name(a, b)]
    if len(different) > len(ours) / 2 and not all(name.startswith("LABEL_") for name in theirs):
        label = different[0]
        raise InputError(
            f"judge.weights: its class {label} is {theirs[label]!r}, the lake's is {ours[label]!r}, and"
            f" {len(different) - 1} more differ; expected a classifier of the same classes in the same order"
        )


def plan_of(config: UnlearnConfig, base: model_folder.Stored | None = None) -> "MemoryPlan | None":
    """The memory plan of `config`, for `base` or, without one, for the published model of its size; None
    where it has no plan."""
    from models.families.transformer import Transformer
    from models.generative import FAMILIES, describe
    from pipeline.runs.memory_plan import MemoryPlan

    config = with_own_settings(config)
    transformers: dict[str, type[Transformer]] = {
        name: family
        for name, family in FAMILIES.items()
        if isinstance(family, type) and issubclass(family, Transformer)
    }
    if base is not None:
        return MemoryPlan(config, base.config) if base.config["family"] in transformers else None
    size = config.model.size
    family = next((one for one in transformers.values() if size in one.sizes), None)
    if family is None:
        return None
    published = family.architecture_of(size)
    shape = (published.channels, published.input_size, published.input_size)
    names = [""] * published.num_classes
    return MemoryPlan(config, describe(size, shape=shape, class_names=names, latent=shape[0] >= 4))


def choose(config: UnlearnConfig, base: model_folder.Stored) -> "Choice | None":
    """How the step will be made on GPUs of `train.memory_gib`; None where that is not given. Raises
    `InputError` when nothing fits."""
    plan = plan_of(config, base) if config.train.memory_gib else None
    if plan is None:
        return None
    choice = plan.choose(config.train.memory_gib)
    if not choice.fits:
        raise InputError(f"train.memory_gib: {choice.why}")
    return choice


def fitted(config: UnlearnConfig, choice: "Choice | None") -> UnlearnConfig:
    """`config` as it will run: with the chosen mode and micro-batch."""
    if choice is None:
        return config
    method = config.method.model_copy(update={"hvp": choice.hvp})
    return config.model_copy(
        update={
            "method": method,
            "optim": config.optim.model_copy(update={"micro_batch": choice.micro_batch}),
        }
    )


def missing(config: UnlearnConfig) -> list[str]:
    """What a run of `config` reads and is not there, each with the key that names it and what to do."""
    from pipeline.data.lake import find_lake, lake_uri, no_lake

    lines = []
    lake = lake_uri(config.storage, config.lake)
    if find_lake(lake) is None:
        lines.append(no_lake(lake))
    own_model = model_folder.model_uri(config.storage, config.model.size, config.lake)
    for key, text, default in (
        ("model.weights", config.model.weights, own_model),
        ("judge.weights", config.judge.weights, model_folder.judge_uri(config.storage, config.lake)),
        ("encoder.weights", config.encoder.weights, None),
    ):
        if registered.named(text):
            continue  # looked for in the registry, when the rest is there
        uri = fetching.locate(text) if text else default
        if uri is not None and not uri.startswith(fetching.HUB) and not storage.exists(uri):
            lines.append(
                model_folder.no_weights(uri, key)
                if default
                else f"{key}: nothing at {uri}; expected the AutoencoderKL that the lake was made with"
            )
    return lines


def _same_name(a: str, b: str) -> bool:
    def synonyms(name: str) -> set[str]:
        return {part.strip().lower().replace("_", " ") for part in name.split(",")}

    return bool(synonyms(a) & synonyms(b))
