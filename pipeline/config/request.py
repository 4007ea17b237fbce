"""What to forget."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Name, Section

RequestId = Name
Exchange = dict[int, int | Annotated[list[int], Field(min_length=1)]]


class Answer(Section):
    """One deletion request that a run answers, with others or alone."""

    id: RequestId = Field(description="of the request")
    classes: list[int] = Field([], description="classes that it asks to forget whole")
    sample_ids_digest: str | None = Field(None, description="SHA-256 of the sample ids that it names")
    sample_count: int = Field(0, ge=0, description="how many sample ids it names")
    purged: bool = Field(
        False, description="the rows of its samples were purged: none is read, and none can be measured"
    )


class Request(Section):
    """What to forget. `exchange` maps a forgotten class to the class its label shall sample from now on, or
    to several: their mixture.

    A class is forgotten now (`classes`), was forgotten earlier (`forgotten_earlier`), or is retained, also
    where some of its samples are forgotten.
    """

    id: RequestId | None = Field(
        None, description="letters, digits, ._-, at most 100; absent: made of the lake and what is asked"
    )
    classes: list[int] = Field([], description="classes to forget whole")
    sample_ids: str | None = Field(
        None, description="URI of a text file with one sample id a line: samples to forget"
    )
    sample_classes: list[int] = Field(
        [],
        description="classes of the named samples, which are retained; absent: looked up in the lake",
    )
    forgotten_earlier: list[int] = Field(
        [],
        description="classes that the base samples no more: no row of them is read, each is measured",
    )
    stood_in: list[int] = Field(
        [],
        description="forgotten classes whose rows were purged: samples drawn under their old labels are read"
        " in their stead, as rows to forget",
    )
    stand_in_samples: int = Field(200, ge=20, description="samples drawn for each class of stood_in")
    stand_in_weights: str | None = Field(
        None,
        description="weights that draw them, which still sample these classes; absent: those that the run"
        " starts from",
    )
    exchange: Exchange = Field(
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
    answers: list[Answer] = Field(
        [],
        description=(
            "the deletion requests that are answered, each measured by itself; absent: this one alone"
        ),
    )
    reason: str = Field("", description="why, for the record")

    @property
    def forgotten_classes(self) -> list[int]:
        """The classes that the result must not sample: those forgotten now and those forgotten earlier."""
        return sorted({*self.classes, *self.forgotten_earlier})

    @property
    def exchange_classes(self) -> dict[int, tuple[int, ...]]:
        """The exchange classes of each forgotten class, sorted."""
        return {
            c: (e,) if isinstance(e, int) else tuple(sorted(set(e))) for c, e in sorted(self.exchange.items())
        }

    @property
    def exchange_classes_now(self) -> dict[int, tuple[int, ...]]:
        """The exchange classes of each class that is forgotten now."""
        return {c: targets for c, targets in self.exchange_classes.items() if c in self.classes}
