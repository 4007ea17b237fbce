"""Training a small model and its judge."""

import operator
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Fraction, LakeName, Section, SeededConfig
from pipeline.config.conditions import Only, while_
from pipeline.config.sampling import Sampling
from pipeline.config.weights import ModelSize
from pipeline.config.workers import ELASTIC, TrainWorkers


class PretrainOptim(Section):
    """The recipe of docs/numerics.md: minutes on two cores."""

    lr: float = Field(3e-3, gt=0, description="learning rate of AdamW at its peak")
    batch_size: int = Field(128, ge=1, description="rows in the global batch")
    max_steps: int = Field(600, ge=1, description="steps")
    warmup_steps: int = Field(
        50, ge=0, description="steps over which the learning rate rises, before a cosine brings it to 0"
    )
    clip: float | None = Field(1.0, gt=0, description="bound on the gradient's norm; null: none")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    ema: float = Field(
        0.99, ge=0, lt=1, description="decay of the averaged weights, which are what is kept; 0: off"
    )


class JudgeOptim(Section):
    net: Literal["small_cnn", "mlp", "resnet"] = Field(
        "small_cnn",
        description=(
            "mlp: one layer of 200 units, the cheapest to train against; resnet: for colour images from 16"
            " pixels on, one worker"
        ),
    )
    width: int = Field(16, ge=4, description="channels of its first layer; mlp has none")
    lr: float = Field(3e-3, gt=0, description="learning rate of AdamW at its peak")
    batch_size: int = Field(128, ge=1, description="rows in the global batch")
    max_steps: int = Field(300, ge=1, description="steps")
    warmup_steps: int = Field(
        20, ge=0, description="steps over which the learning rate rises, before a cosine brings it to 0"
    )
    ema: float = Field(
        0.98, ge=0, lt=1, description="decay of the averaged weights, which are what is kept; 0: off"
    )
    noise: float = Field(0.3, ge=0, description="deviation of the noise added to the images it learns from")
    shift: int = Field(0, ge=0, description="pixels by which these images are moved at random, at most")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    mirror: bool = Field(
        False, description="resnet: once trained, it judges every image together with its mirror image"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the target that is spread over all classes"
    )


class PretrainConfig(SeededConfig):
    conditions: ClassVar[tuple[Only, ...]] = (
        while_("judge.width", "judge.net", "small_cnn", "resnet"),
        while_("uniformity_judge.width", "uniformity_judge.net", "small_cnn", "resnet"),
        Only(keys=("number",), switches=("without", "without_samples"), needed=" given"),
        ELASTIC,
    )

    lake: LakeName = Field("digits", description="name or URI of the lake to read")
    model: ModelSize = ModelSize()
    without: list[int] = Field(
        [],
        description=(
            "classes it never sees: a retrained reference, in its own folder, judged by the judge that is"
            " there"
        ),
    )
    without_samples: str | None = Field(
        None, description="the same for single rows: URI of a text file with one sample id a line"
    )
    number: int = Field(
        0,
        ge=0,
        exclude_if=operator.not_,
        description=(
            "which of several references this is: each has a folder of its own and the seed `seed` plus this"
            " number; the board compares with all that are there"
        ),
    )
    label_dropout: Fraction = Field(
        0.1, description="share of rows trained under the null label (classifier-free guidance)"
    )
    optim: PretrainOptim = PretrainOptim()
    judge: JudgeOptim = JudgeOptim()
    uniformity_judge: JudgeOptim | None = Field(
        None,
        description="a second judge, from a seed of its own, for method.uniformity_weight to train against",
    )
    train: TrainWorkers = TrainWorkers()
    evaluate: Sampling = Field(Sampling(), description="how the trained model is judged")
    checkpoint_s: float = Field(
        120.0, gt=0, description="seconds between two checkpoints; the same command goes on from the last one"
    )

    @model_validator(mode="after")
    def _mirrors(self) -> "PretrainConfig":
        for section, one in (("judge", self.judge), ("uniformity_judge", self.uniformity_judge)):
            if one and one.mirror and one.net != "resnet":
                raise ValueError(
                    f"{section}.mirror: got true for {one.net}, expected false: only net=resnet looks at"
                    " mirror images"
                )
        return self

    @property
    def is_reference(self) -> bool:
        """Whether it is a reference beside the model that sees everything."""
        return bool(self.without or self.without_samples)

    @property
    def judges(self) -> dict[str, JudgeOptim]:
        """The judges it trains, by what their folders are called."""
        if self.is_reference:
            return {}
        return {
            "judge": self.judge,
            **({"hat-judge": self.uniformity_judge} if self.uniformity_judge else {}),
        }
