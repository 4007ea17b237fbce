"""What a run whose weights are shared out over its workers cannot do."""

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config.unlearn import UnlearnConfig

# what pipeline/unlearning/methods/table.py says of them, which this room cannot ask: a test compares
MAKES_VECTORS = (
    "salun",
    "sfr_on",
    "selective_amnesia",
)  # methods that look at the base's whole gradients first


def require_shardable(config: "UnlearnConfig", *, is_vae: bool, second_order: Collection[str]) -> None:
    """Raise `ValueError` for a setting that `train.shard` does not go with."""
    if not config.train.shard:
        return
    train, method = config.train, config.method
    refusals = (
        (
            train.fewest < train.most or train.most == 1,
            f"train.workers {train.workers}",
            "a fixed number of 2 or more to share the weights",
        ),
        (is_vae, f"model.size {config.model.size}", "a transformer, such as DiT-XL/2"),
        (
            method.name in second_order and not method.hvp.startswith("fd"),
            f"method.hvp {method.hvp} for {method.name}, which takes second derivatives",
            "method.hvp fd_central or fd_forward, or a method of first order such as surgery or exchange",
        ),
        (
            method.name in MAKES_VECTORS,
            f"method.name {method.name}, which makes vectors of whole gradients before the first step",
            "another method, such as uno_s with method.hvp fd_central",
        ),
        (
            bool(method.label_extrapolation),
            f"method.label_extrapolation {method.label_extrapolation}",
            "0: the sharded base has one label table",
        ),
        (config.evaluate.asynchronous, "evaluate.asynchronous true", "false: the workers check together"),
        (train.compile, "train.compile true", "false"),
    )
    for refused, got, expected in refusals:
        if refused:
            raise ValueError(f"train.shard: got {got}; expected {expected}")
