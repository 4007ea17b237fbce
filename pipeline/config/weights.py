"""Sections that name weights: a model, a judge, a decoder, a feature extractor."""

from typing import Literal

from pydantic import Field

from pipeline.config.base import SHA256, Section


class ModelSize(Section):
    size: str = Field("DiT-tiny", description="of a family: DiT-…, SiT-…, REPA-…, LightningDiT-… or vae-…")


class ModelWeights(ModelSize):
    weights: str | None = Field(
        None,
        min_length=1,
        description=(
            "folder, published .pt, DiTPipeline folder: path, URI or Hugging Face id; absent: what"
            " pretrain.py left"
        ),
    )
    sha256: str | None = Field(
        None, pattern=SHA256, description="of the file that holds the weights: any other is refused"
    )


class Model(ModelWeights):
    weights: str | None = Field(
        None,
        min_length=1,
        description=(
            "folder, published .pt, DiTPipeline folder: path, URI or Hugging Face id; a registered version:"
            " models:/name@champion, models:/name/7, name:7; absent: what pretrain.py left"
        ),
    )
    batch_norm: Literal["running", "batch"] = Field(
        "running",
        description=(
            "statistics of a VAE's batch norm while it is trained: stored ones, or the batch's (one worker,"
            " whole batches)"
        ),
    )


class Decoder(Section):
    """The autoencoder of a model of latents: what turns its samples into images."""

    weights: str | None = Field(
        None, description="AutoencoderKL folder, URI or Hugging Face id; absent: what came with model.weights"
    )
    sha256: str | None = Field(
        None, pattern=SHA256, description="of the file that holds the weights: any other is refused"
    )


class Judge(Section):
    weights: str | None = Field(
        None,
        description=(
            "folder, transformers image classifier: path, URI or Hugging Face id; absent: what pretrain.py"
            " left"
        ),
    )
    sha256: str | None = Field(
        None, pattern=SHA256, description="of the file that holds the weights: any other is refused"
    )


class Extractor(Section):
    """Weights of a feature space that distances are taken in beside the judge's: see
    models/features/table.py."""

    weights: str = Field(
        min_length=1, description="file or folder of the space's format: path, URI or Hugging Face id"
    )
    sha256: str | None = Field(
        None, pattern=SHA256, description="of the file that holds the weights; a TorchScript file needs it"
    )
