"""The optimiser of an unlearning run, and how long it goes on."""

import operator
from typing import Literal

from pydantic import Field

from pipeline.config.base import Section


class Optim(Section):
    """AdamW of an unlearning run. The defaults are those that served the digits model best
    (docs/experiments/methods.md)."""

    lr: float = Field(0.01, gt=0, description="learning rate of AdamW")
    label_lr: float | None = Field(None, gt=0, description="learning rate of the label table; absent: lr")
    batch_size: int = Field(
        64, ge=1, description="rows of each kind (retain, exchange, forget) in the global batch"
    )
    micro_batch: int | None = Field(
        None, ge=1, description="rows of each kind a worker holds at once; absent: its whole share"
    )
    max_steps: int = Field(60, ge=1, description="steps after which a run ends, settled or not")
    max_seconds: float | None = Field(
        None, gt=0, description="seconds of steps after which a run ends, at its next check; absent: no bound"
    )
    max_cpu_seconds: float | None = Field(
        None,
        gt=0,
        exclude_if=operator.not_,
        description=(
            "the same in CPU seconds of the worker's process, with those that the method takes to prepare; a"
            " measure that other processes on the machine do not change"
        ),
    )
    warmup_steps: int = Field(0, ge=0, description="steps over which the learning rate rises")
    moment_warmup_steps: int = Field(
        0, ge=0, description="gradient evaluations at lr 0 that fill the optimiser's moments first"
    )
    schedule: Literal["constant", "cosine"] = Field(
        "constant",
        description="learning rate after the warm-up: lr, or half a cosine down to 5 % of it at max_steps",
    )
    clip: float | None = Field(1.0, gt=0, description="bound on the gradient's norm")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    separate_moments: bool = Field(
        False,
        exclude_if=operator.not_,
        description=(
            "two optimisers over the same weights: one for what forgets, one for what retains, each with"
            " moments of its own (DualOptim); only for methods that are such a sum"
        ),
    )
    moments: Literal["fp32", "bf16"] = Field(
        "fp32",
        exclude_if=lambda value: value == "fp32",
        description=(
            "what AdamW's moments are kept in between two steps; bf16 halves them, at 8 bits of mantissa"
            " (docs/numerics.md)"
        ),
    )
    ema: float = Field(
        0.7, ge=0, lt=1, description="decay of the averaged weights that are evaluated and registered; 0: off"
    )
