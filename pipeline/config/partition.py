"""How the rows that a run streams are cut and written."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.config.base import Section

if TYPE_CHECKING:
    from pipeline.config.unlearn import UnlearnConfig


HELD_BYTES = 512 << 20  # 32,000 latents of DiT, 2,700 images of 256 x 256 pixels


class Partition(Section):
    lanes: int = Field(
        8,
        ge=1,
        description=(
            "equal streams the retain side is cut into; any worker count that divides it sees the same"
            " batches"
        ),
    )
    segment_steps: int | None = Field(
        None, ge=1, description="steps of one file of a lane; absent: what makes a file about 16 MB"
    )
    reader: Literal["plain", "ray"] = Field(
        "plain",
        exclude_if=lambda reader: reader == "plain",
        description="who reads a worker's lanes: the worker itself, or Ray Data in a process beside it",
    )
    held_bytes: int = Field(
        HELD_BYTES,
        ge=0,
        exclude_if=lambda held: held == HELD_BYTES,
        description=(
            "bytes up to which every worker holds a side in memory, the rows to forget or those of the"
            " exchange classes; a larger one is read from the partition row by row, ahead of the steps, with"
            " the same result"
        ),
    )


def require_lanes(config: "UnlearnConfig") -> None:
    """Raise `ValueError` for a batch, workers or micro-batches that do not divide as they have to."""
    batch, lanes, fewest, most = (
        config.optim.batch_size,
        config.partition.lanes,
        config.train.fewest,
        config.train.most,
    )
    if batch % lanes:
        raise ValueError(f"optim.batch_size: got {batch}, expected a multiple of partition.lanes ({lanes})")
    if fewest == most and lanes % most:
        raise ValueError(f"train.workers: got {most}, expected a divisor of partition.lanes ({lanes})")
    if not any(lanes % workers == 0 for workers in range(fewest, most + 1)):
        raise ValueError(
            f"train.workers: got [{fewest}, {most}], expected a divisor of partition.lanes ({lanes})"
            " among them"
        )
    if config.optim.micro_batch and (batch // most) % config.optim.micro_batch:
        raise ValueError(
            f"optim.micro_batch: got {config.optim.micro_batch}, expected a divisor of a worker's share of"
            f" the batch ({batch} / {most} = {batch // most})"
        )
