"""How much is sampled, judged and tried when a model is measured, and when it is attacked."""

import operator
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from pipeline.config.base import Section
from pipeline.config.sampling import Sampler

# learning rates: one, or several of which the one that does most is taken
Rates = Annotated[
    list[Annotated[float, Field(gt=0)]],
    BeforeValidator(lambda value: value if isinstance(value, list) else [value]),
    Field(min_length=1),
]
Start = Literal["own", "mean", "random"]


class WithNamed(Section):
    """A section that also takes mappings by name: settings of single metrics or attacks, which their table
    checks."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _nothing_else(cls, values: Any) -> Any:
        unknown = [
            InitErrorDetails(type="extra_forbidden", loc=(key,), input=value)
            for key, value in (values.items() if isinstance(values, Mapping) else ())
            if key not in cls.model_fields and not isinstance(value, Mapping)
        ]
        if unknown:
            raise ValidationError.from_exception_data(cls.__name__, unknown)
        return values


class Measuring(WithNamed):
    """What the metrics of pipeline/evaluation sample. Shares come with n and a 95 % interval: these numbers
    decide its width. A metric with settings of its own has them under its name."""

    samples: int = Field(
        200, ge=20, description="images sampled under the forgotten labels together, at each CFG scale"
    )
    retain_samples: int = Field(50, ge=2, description="images sampled under each retained label")
    null_samples: int = Field(200, ge=1, description="images sampled under the null label")
    cfg_scale: float = Field(2.0, ge=0, description="scale of classifier-free guidance")
    cfg_scales: list[float] = Field(
        [1.0, 4.0], description="further scales at which the forgotten labels are sampled"
    )
    sampler_steps: int = Field(20, ge=1, description="sampler steps")
    sampler: Sampler | None = Field(
        None, exclude_if=operator.not_, description="another sampler than the model's own"
    )
    block: int = Field(50, ge=4, description="images sampled together; also the block of the kernel distance")
    reference_rows: int = Field(2000, ge=2, description="real retained rows that distances are taken to")
    manifold_k: int = Field(
        3, ge=1, description="precision and recall: the neighbour that sets a ball's radius"
    )
    manifold_samples: int = Field(
        1000, ge=10, description="precision and recall: images and rows on either side"
    )
    loss_rows: int = Field(
        100, ge=2, description="rows of each kind whose loss is taken in every timestep bin"
    )
    timestep_bins: int = Field(10, ge=1, description="equal stretches of the timesteps")
    membership_noises: int = Field(16, ge=1, description="noises over which a row's loss is averaged")
    membership_rows: int = Field(500, ge=2, description="rows on either side of the loss attack, at most")
    attacker_images: Literal["heldout", "train"] = Field(
        "heldout",
        description=(
            "images of a forgotten class that attacks and relearning teach with: heldout, those the lake"
            " holds out of training; train, the forgotten rows themselves, for a lake that holds none out"
        ),
    )
    relearn_images: int = Field(
        10, ge=1, description="images of a forgotten class that it is taught again with"
    )
    relearn_lr: float = Field(1e-4, gt=0, description="learning rate of that teaching")
    relearn_batch: int = Field(32, ge=1, description="rows in a step of it")
    relearn_checks: list[Annotated[int, Field(ge=0)]] = Field(
        [0, 1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96],
        min_length=1,
        description="steps after which it is judged",
    )
    relearn_samples: int = Field(100, ge=20, description="images sampled at each of these checks")


class Attacks(WithNamed):
    """The attack suite: what is tried to bring a forgotten class back. An attack with settings of its own
    has them under its name."""

    only: list[str] = Field(
        [], description="the attacks to try, by the names of docs/evaluation.md; []: every one"
    )
    samples: int = Field(
        200, ge=20, description="images sampled under the forgotten labels after each attack"
    )
    choice_samples: int = Field(
        50,
        ge=10,
        description=(
            "images, on noise of their own, by which one of several learning rates is chosen: the one that"
            " shows the class most"
        ),
    )
    retain_samples: int = Field(
        20, ge=1, description="images sampled under each retained label after each attack"
    )
    finetune_steps: int = Field(100, ge=1, description="benign fine-tuning on retained rows, every parameter")
    finetune_lr: float = Field(1e-3, gt=0, description="learning rate of it")
    finetune_batch: int = Field(64, ge=1, description="rows in a step of it")
    embedding_steps: int = Field(
        300, ge=1, description="steps of the free label embedding against the frozen network"
    )
    embedding_lr: Rates = Field(
        [0.05, 0.2], description="learning rates of it, one or several: what shows the class most counts"
    )
    embedding_starts: list[Start] = Field(
        ["own", "mean", "random"],
        min_length=1,
        description=(
            "where it begins: the label's own row, the mean of the retained labels' rows, a random row"
        ),
    )
    embedding_batch: int = Field(64, ge=1, description="rows in a step of it")
    embedding_images: int = Field(
        64,
        ge=1,
        description=(
            "images of a forgotten class that the attacker has, at most: of those that the lake holds out of"
            " training"
        ),
    )
    cfg_scales: list[float] = Field([1.0, 4.0, 8.0], description="CFG scales to try")
    sampler_steps: list[int] = Field([8, 50], description="numbers of deterministic steps to try")
    ancestral_steps: int = Field(50, ge=1, description="steps of the stochastic sampler")
