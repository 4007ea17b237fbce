"""Raw layouts by name: one file each, one line here."""

from collections.abc import Callable

from pipeline import config
from pipeline.data.sources.base import RawImages


def _digits(source: config.Source) -> RawImages:
    from pipeline.data.sources.digits import Digits

    return Digits(held_out=source.held_out)


SOURCES: dict[str, Callable[[config.Source], RawImages]] = {
    "digits": _digits,
}


def open_source(source: config.Source) -> RawImages:
    """The source that the configuration names. Nothing is read yet."""
    return SOURCES[source.kind](source)
