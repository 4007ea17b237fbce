"""Where raw images come from: one file a kind, and the table that names them."""

from collections.abc import Callable

from pipeline import config
from pipeline.data.sources.base import RawImages


def _digits(source: config.Source) -> RawImages:
    from pipeline.data.sources.digits import Digits

    return Digits(held_out=source.held_out)


def _imagefolder(source: config.Source) -> RawImages:
    from pipeline.data.sources.imagefolder import ImageFolder

    return ImageFolder(source.uri or "", source.classes, source.held_out)


def _parquet(source: config.Source) -> RawImages:
    from pipeline.data.sources.parquet import ParquetImages

    return ParquetImages(source.uri or "", source.classes, source.held_out)


def _webdataset(source: config.Source) -> RawImages:
    from pipeline.data.sources.webdataset import WebDataset

    return WebDataset(source.uri or "", source.classes, source.held_out)


def _mnist(source: config.Source) -> RawImages:
    from pipeline.data.sources.mnist import Mnist

    return Mnist(source.uri or "")


def _celeba(source: config.Source) -> RawImages:
    from pipeline.data.sources.celeba import CelebA

    return CelebA(source.uri or "", source.attribute or "", source.held_out)


SOURCES: dict[str, Callable[[config.Source], RawImages]] = {
    "digits": _digits,
    "imagefolder": _imagefolder,
    "parquet": _parquet,
    "webdataset": _webdataset,
    "mnist": _mnist,
    "celeba": _celeba,
}


def open_source(source: config.Source) -> RawImages:
    """The source that the configuration names. Nothing is read yet."""
    return SOURCES[source.kind](source)
