"""jobs/export.py's work: weights of ours, whole, to a folder or file in a published format."""

import io
import tempfile
from pathlib import Path

from pipeline import fetching, storage
from pipeline.config.export import ExportConfig
from pipeline.errors import InputError
from pipeline.weights import import_published, model_folder


def source(config: ExportConfig) -> tuple[str, model_folder.Stored]:
    """A name for what is exported, and its weights."""
    if config.weights:
        uri = fetching.locate(config.weights)
        name, stored = uri.rsplit("/", 1)[-1], model_folder.read(uri, "weights", size=config.size)
    else:
        from pipeline.tracking.registry import local_copy, resolve

        version = resolve(config.tracking, config.storage, config.version)
        name = f"{config.tracking.model_name}-v{version.version}"
        stored = model_folder.read(str(local_copy(config.tracking, config.storage, version)), "version")
    if config.encoder.weights:
        description, state = import_published.read_autoencoder(
            fetching.locate(config.encoder.weights), "encoder.weights", config.encoder.sha256
        )
        stored = model_folder.with_autoencoder(stored, description, state)
    return name, stored


def output_of(config: ExportConfig, name: str) -> str:
    suffix = "" if config.format == "pipeline" else f".{config.format}"
    return (
        storage.absolute(config.output)
        if config.output
        else storage.join(config.storage, "exports", name + suffix)
    )


def export(config: ExportConfig, stored: model_folder.Stored, output: str) -> int:
    """Write `stored` to `output`; the number of files. Nothing is written when the model cannot be in that
    format."""
    return (
        export_pipeline(stored, output)
        if config.format == "pipeline"
        else _state_dict(config.format, stored, output)
    )


def export_pipeline(stored: model_folder.Stored, output: str) -> int:
    """Write the DiTPipeline folder of `stored` to `output`; the number of files."""
    from models import export, weights

    if (
        stored.config.get("family") == "dit"
        and stored.autoencoder is None
        and not stored.config["clip_samples"]
    ):
        raise InputError(
            "encoder.weights: got none, expected the AutoencoderKL of this model of latents: --set"
            " encoder.weights=<folder or URI>"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "pipeline"
        try:
            export.write_pipeline(folder, stored.config, stored.state, stored.autoencoder)
        except (weights.WeightsError, ImportError) as error:
            raise InputError(f"format pipeline: {error}") from error
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        # the index last: what has one is whole
        for path in sorted(files, key=lambda path: path.name == export.INDEX):
            storage.upload(path, storage.join(output, path.relative_to(folder).as_posix()))
    return len(files)


def _state_dict(kind: str, stored: model_folder.Stored, output: str) -> int:
    import torch

    from models import weights

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in stored.state.items()}
    buffer = io.BytesIO()
    if kind == "pt":
        torch.save(state, buffer)
    data = buffer.getvalue() if kind == "pt" else weights.to_bytes(state)
    description = {key: value for key, value in stored.config.items() if key != "autoencoder"}
    folder, _, file = output.rpartition("/")
    storage.write_json(storage.join(folder, f"{file.rpartition('.')[0] or file}.json"), description)
    storage.write_bytes(output, data)
    return 2
