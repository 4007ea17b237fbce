"""Forgetting in the weights: what is trained beside the retain rows, and the adversary it is trained
against."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config.base import Section

if TYPE_CHECKING:
    from pipeline.config.unlearn import UnlearnConfig

# what a run of depth weights has where nothing is said (docs/experiments/depth.md)
DEPTH_WEIGHTS: dict[str, Any] = {
    "method": {"name": "exchange"},
    "trainable": "all",
    "optim": {
        "lr": 1e-3,
        "batch_size": 48,
        "max_steps": 100,
        "warmup_steps": 20,
        "schedule": "cosine",
        "ema": 0.0,
    },
    "evaluate": {"every": 20, "patience_steps": 40, "to_the_end": True},
}


class Redirection(Section):
    """The terms of `method.depth: weights` (docs/numerics.md). The retain rows weigh 1 and are
    `optim.batch_size`; all counts of rows are of the global batch, multiples of `partition.lanes`."""

    weight: float = Field(
        0.4,
        ge=0,
        description="of the forgotten rows under adversarial embeddings, which are to show the exchange",
    )
    rows: int = Field(64, ge=1, description="forgotten rows under adversarial embeddings in a step")
    label_weight: float = Field(
        0.5, ge=0, description="of rows under the forgotten label, which are to show the exchange"
    )
    label_rows: int = Field(
        16, ge=1, description="retained rows under the forgotten label in a step, and as many forgotten ones"
    )
    others_weight: float = Field(
        1.0, ge=0, description="of forgotten rows under retained labels and the null label"
    )
    others_rows: int = Field(48, ge=1, description="forgotten rows under other labels in a step")
    near_classes: int = Field(
        2,
        ge=0,
        description=(
            "for each forgotten class, the retained ones that share most with it (under whose labels the base"
            " denoises its rows best); every second row under a retained label is under one of theirs"
        ),
    )
    near_rows: int = Field(48, ge=0, description="further retained rows of these classes in a step")
    pool: int = Field(8, ge=1, description="adversarial embeddings that are kept from step to step")
    buckets: int = Field(
        5,
        ge=1,
        description=(
            "equal stretches of the timesteps: every second embedding of the pool is one for each of them; 1:"
            " all are one for all timesteps"
        ),
    )
    embedding_lr: Annotated[
        list[Annotated[float, Field(ge=0)]],
        BeforeValidator(lambda value: [value] if isinstance(value, int | float) else value),
    ] = Field(
        [0.05, 0.2],
        min_length=1,
        description=(
            "learning rates of the embeddings, in turn, one step of Adam a step: a slow one searches near, a"
            " fast one far; 0: they stay random"
        ),
    )
    restart_every: int = Field(150, ge=1, description="steps after which an embedding begins anew")

    @model_validator(mode="after")
    def _each_has_rows(self) -> "Redirection":
        if self.pool > self.rows:
            raise ValueError(
                f"redirection.pool: got {self.pool} embeddings for {self.rows} rows a step, expected no more"
                " than redirection.rows"
            )
        return self


def with_defaults_of_depth(values: Any) -> Any:
    """The `values` of a configuration, with the defaults of depth weights where that is its depth."""
    method = values.get("method") if isinstance(values, Mapping) else None
    deep = isinstance(method, Mapping) and method.get("depth") == "weights"
    return _completed(values, DEPTH_WEIGHTS) if deep else values


def _completed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `defaults` where it has nothing, section by section."""
    complete = {**defaults, **values}
    for key, inner in defaults.items():
        if isinstance(inner, Mapping) and isinstance(given := values.get(key), Mapping):
            complete[key] = _completed(given, inner)
    return complete


def require_redirection(config: "UnlearnConfig") -> None:
    """Raise `ValueError` for settings that depth weights has no meaning for."""
    if config.method.depth == "label":
        return
    if config.model.size.startswith("vae"):
        raise ValueError(
            f"method.depth: got weights for {config.model.size}, which takes no labels; expected label"
        )
    if config.method.targets != "teacher":
        raise ValueError(
            "method.targets: got data with method.depth weights, which holds everything to the base's"
            " predictions; expected teacher"
        )
    if config.trainable == "labels":
        raise ValueError(
            "trainable: got labels with method.depth weights, but the label table is what an attacker"
            " replaces; expected weights of the network, such as all"
        )
    lanes, batch_size, section = config.partition.lanes, config.optim.batch_size, config.redirection
    for name in ("rows", "label_rows", "others_rows", "near_rows"):
        if (rows := getattr(section, name)) % lanes:
            raise ValueError(
                f"redirection.{name}: got {rows}, expected a multiple of partition.lanes ({lanes})"
            )
    if section.label_rows > batch_size:
        raise ValueError(
            f"redirection.label_rows: got {section.label_rows}, expected at most optim.batch_size"
            f" ({batch_size}), whose rows they are"
        )
