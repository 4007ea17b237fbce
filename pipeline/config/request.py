"""What to forget."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Section


class Request(Section):
    """What to forget. `exchange` maps a forgotten class to the class its label shall sample from now on, or
    to
    several: their mixture."""

    id: str | None = Field(None, description="name of the request; absent: made of what it asks")
    classes: list[int] = Field([], description="classes to forget, or with sample_ids those of the samples")
    sample_ids: str | None = Field(None, description="URI of a text file with one sample id a line")
    exchange: dict[int, int | Annotated[list[int], Field(min_length=1)]] = Field(
        {}, description="forgotten class -> the class, or classes, that its label samples from now on"
    )
    without_exchange: bool = Field(False, description="accept a forgotten class without an exchange class")
    retain: Literal["exchange", "neighbours", "all"] = Field(
        "all", description="classes whose rows are trained on to be kept"
    )
    neighbours: int = Field(
        5, ge=1, description="how many nearest classes count as neighbours of the forgotten ones"
    )
    nearest_by: Literal["embedding", "judge"] = Field(
        "embedding",
        description=(
            "what nearest means: the model's label table, or what the judge confuses on images of the"
            " forgotten classes"
        ),
    )
    reason: str = Field("", description="why, for the record")

    @property
    def forgotten_classes(self) -> list[int]:
        """The classes to forget whole: none when samples are named, `classes` then only
        says where they are."""
        return [] if self.sample_ids else self.classes

    @property
    def exchange_classes(self) -> dict[int, tuple[int, ...]]:
        """The exchange classes of each forgotten class, sorted."""
        return {
            c: (e,) if isinstance(e, int) else tuple(sorted(set(e))) for c, e in sorted(self.exchange.items())
        }
