"""Where raw images come from: one file a kind, and the table that names them."""

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel

from pipeline.config.own_settings import complete
from pipeline.config.prepare import Source
from pipeline.data.sources.base import FileSettings, HeldOut, RawImages
from pipeline.data.sources.celeba import CelebA, CelebASettings
from pipeline.data.sources.digits import Digits
from pipeline.data.sources.imagefolder import ImageFolder
from pipeline.data.sources.latents import Latents, LatentSettings
from pipeline.data.sources.mnist import Mnist, MnistSettings
from pipeline.data.sources.parquet import ParquetImages
from pipeline.data.sources.webdataset import WebDataset


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of source: what opens it takes the fields of `settings` by name."""

    open: Callable[..., RawImages]
    settings: type[BaseModel]
    meaning: str


SOURCES: dict[str, Kind] = {
    "digits": Kind(open=Digits, settings=HeldOut, meaning="scikit-learn's 1,797 handwritten digits of 8x8"),
    "imagefolder": Kind(open=ImageFolder, settings=FileSettings, meaning="one folder of images per class"),
    "parquet": Kind(
        open=ParquetImages, settings=FileSettings, meaning="Parquet with image {bytes, path} and label"
    ),
    "webdataset": Kind(
        open=WebDataset, settings=FileSettings, meaning="tar shards with <key>.jpg and <key>.cls"
    ),
    "mnist": Kind(open=Mnist, settings=MnistSettings, meaning="MNIST's four idx files"),
    "latents": Kind(
        open=Latents, settings=LatentSettings, meaning="latents of LightningDiT's VA-VAE, as published"
    ),
    "celeba": Kind(open=CelebA, settings=CelebASettings, meaning="CelebA, one attribute as two classes"),
}


def completed(source: Source) -> Source:
    """`source` with the settings of its kind, checked and complete; raises `InputError`."""
    return complete(source, "source", {name: kind.settings for name, kind in SOURCES.items()})


def open_source(source: Source) -> RawImages:
    """The source that the configuration names. Nothing is read yet."""
    return SOURCES[source.kind].open(**completed(source).own)
