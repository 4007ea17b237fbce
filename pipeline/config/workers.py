"""The workers of a training on Ray."""

import operator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from pipeline.config.base import Section
from pipeline.config.conditions import Only

# value, !value, in(a, b), !in(a, b)
Selector = Annotated[str, Field(pattern=r"^!?([\w.-]+|in\( *[\w.-]+( *, *[\w.-]+)* *\))$")]


class TrainWorkers(Section):
    """With `workers: [min, max]` a run goes on with as many as are alive, on the same global batches."""

    workers: int | list[int] = Field(2, description="how many, or [fewest, most]")
    cpus_per_worker: float = Field(0.5, gt=0, description="CPUs that a worker reserves")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs that a worker reserves; 0: on the CPU")
    label_selector: dict[str, Selector] = Field(
        {},
        exclude_if=operator.not_,
        description=(
            "labels of the nodes that workers are placed on, in Ray's terms: value, !value, in(a, b) or"
            " !in(a, b); absent: any node"
        ),
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of matrix products; weights, moments and reductions are fp32 either way"
    )
    tf32: bool = Field(
        False, description="float32 matrix products in TF32 on GPUs: faster, with 10 bits of mantissa"
    )
    threads: int = Field(1, ge=1, description="BLAS threads of a worker")
    max_failures: int = Field(3, ge=0, description="worker failures a run survives")
    wait_s: float = Field(
        600.0, ge=0, description="how long to wait for a cluster that has not got the resources (yet)"
    )
    resize_s: float = Field(60.0, gt=0, description="elastic: seconds between two looks for workers to add")

    @property
    def fewest(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @field_validator("workers", mode="before")
    @classmethod
    def _a_number_or_a_range(cls, value: Any) -> Any:
        numbers = list(value) if isinstance(value, list | tuple) else [value, value]
        if (
            len(numbers) != 2
            or not all(type(number) is int for number in numbers)
            or not 1 <= numbers[0] <= numbers[1]
        ):
            raise ValueError("expected a positive number or [fewest, most]")
        return value


class Train(TrainWorkers):
    compile: bool = Field(
        False,
        description=(
            "torch.compile for passes of first order and for sampling (DiTs): pays where a run is much longer"
            " than a minute"
        ),
    )
    shard: bool = Field(
        False,
        exclude_if=operator.not_,
        description=(
            "each worker holds its share of weights, gradients, moments and average instead of all (FSDP2),"
            " and writes its share of a checkpoint; for methods of first order and for method.hvp fd_central"
            " (docs/extending.md)"
        ),
    )
    memory_gib: float | None = Field(
        None,
        gt=0,
        description=(
            "memory of one GPU: hvp exact gives way to recompute, and a step to smaller micro-batches, where"
            " it would not fit; absent: not looked at"
        ),
    )
    grace_s: float = Field(
        30.0, gt=0, description="after SIGTERM: how long the driver waits for the workers' checkpoint"
    )


ELASTIC = Only(
    keys=("train.resize_s",),
    switches=("train.workers",),
    needed="=[fewest, most]",
    holds=lambda workers: isinstance(workers, list) and workers[0] < workers[1],
)
