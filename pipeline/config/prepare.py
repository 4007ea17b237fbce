"""From raw images to a lake."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.base import JobConfig, LakeName, OpenSection, Section
from pipeline.config.conditions import Only, while_

LATENTS = "latents"  # the kind of source that is encoded already


class Source(OpenSection):
    """Where raw images come from. The settings of each kind stand in its line of
    pipeline/data/sources/__init__.py."""

    named: ClassVar[str] = "kind"
    kind: str = Field("digits", description="a kind of the table")


class Encoder(Section):
    """What the lake holds: pixels, or an autoencoder's latents (posterior mean and std)."""

    kind: Literal["identity", "autoencoder_kl"] = Field(
        "identity", description="identity: pixels; autoencoder_kl: latents of a diffusers AutoencoderKL"
    )
    weights: str | None = Field(
        None, description="folder or URI of a diffusers AutoencoderKL: config.json and safetensors"
    )
    statistics: str | None = Field(
        None,
        description=(
            "mean and std of each latent channel, a .pt or .safetensors file: for a model trained on latents"
            " so normalised (LightningDiT); in place of the autoencoder's own factor"
        ),
    )
    batch: int = Field(32, ge=1, description="images encoded at once")
    workers: int = Field(1, ge=1, description="processes that hold the autoencoder")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs that each of them reserves")

    @model_validator(mode="after")
    def _has_weights(self) -> "Encoder":
        if self.kind != "identity" and not self.weights:
            raise ValueError(
                f"encoder.weights: got none, expected the {self.kind} folder: --set encoder.weights=<folder"
                " or URI>"
            )
        return self


class Prepare(Section):
    size: int = Field(256, ge=1, le=10_000, description="height and width of the lake's images")
    channels: Literal[1, 3] = Field(3, description="1: grey, 3: colour")
    shard_rows: int = Field(
        4096, ge=1, description="rows of one Parquet shard, fewer where they would exceed 128 MB"
    )
    flip: bool = Field(
        False, description="a second row per training image, mirrored, its sample id marked ~flip"
    )
    max_rejected: int | None = Field(
        None, ge=0, description="unusable images a run puts up with; absent: any number"
    )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.size, self.size, self.channels


class PrepareConfig(JobConfig):
    conditions: ClassVar[tuple[Only, ...]] = (
        while_(
            "encoder.weights encoder.statistics encoder.batch encoder.workers encoder.gpus_per_worker",
            "encoder.kind",
            "autoencoder_kl",
        ),
        Only(
            keys=("encoder.kind", "prepare.channels"),
            switches=("source.kind",),
            needed=" one of images",
            holds=lambda kind: kind != LATENTS,
        ),
    )

    lake: LakeName = Field("digits", description="name or URI of the lake to write")
    source: Source = Source()
    encoder: Encoder = Encoder()
    prepare: Prepare = Prepare()
    without_buried: bool = Field(
        False,
        description=(
            "leave out images that were purged; of a complete lake, write the classes that hold some again"
        ),
    )
