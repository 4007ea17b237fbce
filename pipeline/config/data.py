"""From raw images to a lake."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.base import Fraction, JobConfig, Section


class Source(Section):
    """Where raw images come from."""

    kind: Literal["digits", "imagefolder", "parquet", "webdataset", "mnist", "celeba"] = "digits"
    uri: str | None = Field(None, description="folder, file or glob on any storage; digits needs none")
    classes: list[str] | str | None = Field(
        None,
        description=(
            "class names by label; or 'imagenet'; or the URI of an index file; absent: what the source says"
            " itself"
        ),
    )
    attribute: str | None = Field(
        None, description="celeba: the attribute that makes the two classes, such as Eyeglasses"
    )
    held_out: Fraction = Field(
        0.2,
        description=(
            "share of each class kept out of training, by sample id; unused where the source has a split"
        ),
    )

    @model_validator(mode="after")
    def _complete(self) -> "Source":
        if self.kind != "digits" and not self.uri:
            raise ValueError(
                f"source.uri: got none, expected where the {self.kind} images are: --set source.uri=<folder"
                " or URI>"
            )
        if self.kind == "celeba" and not self.attribute:
            raise ValueError(
                "source.attribute: got none, expected a column of list_attr_celeba: --set"
                " source.attribute=Eyeglasses"
            )
        return self


class Encoder(Section):
    """What the lake holds: pixels, or an autoencoder's latents (posterior mean and std)."""

    kind: Literal["identity", "autoencoder_kl"] = "identity"
    weights: str | None = Field(
        None, description="folder or URI of a diffusers AutoencoderKL: config.json and safetensors"
    )
    batch: int = Field(32, ge=1, description="images encoded at once")
    workers: int = Field(1, ge=1, description="processes that hold the autoencoder")
    gpus_per_worker: float = Field(0, ge=0)

    @model_validator(mode="after")
    def _has_weights(self) -> "Encoder":
        if self.kind != "identity" and not self.weights:
            raise ValueError(
                f"encoder.weights: got none, expected the {self.kind} folder: --set encoder.weights=<folder"
                " or URI>"
            )
        return self


class Prepare(Section):
    size: int = Field(256, ge=1, description="height and width of the lake's images")
    channels: Literal[1, 3] = 3
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
    lake: str = "digits"
    source: Source = Source()
    encoder: Encoder = Encoder()
    prepare: Prepare = Prepare()
