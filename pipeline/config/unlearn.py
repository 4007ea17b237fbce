"""The main job: what to forget, how, and what has to hold before the result may be promoted."""

import operator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.attack_suite import Suite, require_attacks, with_quick_suite, with_recall_gate
from pipeline.config.base import Fraction, LakeName, Name, OpenSection, SeededConfig
from pipeline.config.conditions import Only, while_
from pipeline.config.gate import Gate
from pipeline.config.measuring import Attacks, Measuring
from pipeline.config.optim import Optim
from pipeline.config.partition import Partition, require_lanes
from pipeline.config.redirection import Redirection, require_redirection, with_defaults_of_depth
from pipeline.config.request import Request
from pipeline.config.sampling import Sampling
from pipeline.config.sharding import require_shardable
from pipeline.config.tracking import Tracking
from pipeline.config.weights import Decoder, Extractor, Judge, Model
from pipeline.config.workers import ELASTIC, Train


class Method(OpenSection):
    """Settings that all methods have; those of one method alone stand in its line of
    pipeline/unlearning/methods/table.py."""

    named: ClassVar[str] = "name"
    depth: Literal["label", "weights"] = Field(
        "label",
        description=(
            "label: the forgotten label shows the exchange, the network may still hold the class; weights:"
            " so does every embedding that an adversary finds in its place (docs/numerics.md)"
        ),
    )
    name: str = Field(
        "uno_s", description="a method of the table; at depth weights exchange where none is given"
    )
    hvp: Literal["exact", "recompute", "fd_central", "fd_forward"] = Field(
        "exact", description="how the penalty's gradient is made"
    )
    targets: Literal["data", "teacher"] = Field(
        "teacher", description="what L_r and L_x are measured against"
    )
    exchange_weight: float = Field(0.5, ge=0, description="weight of L_x against L_r; 1 in the paper")
    label_init: Literal["base", "exchange"] = Field(
        "base",
        description=(
            "exchange: the forgotten labels' rows begin at those of their exchange classes"
            " (docs/experiments/methods.md)"
        ),
    )
    label_extrapolation: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        0.0,
        description=(
            "how far beyond the exchange class, away from itself, a forgotten label is aimed; auto: as the"
            " judge finds best"
        ),
    )
    contrast: bool = Field(
        False, description="L_f minus the loss of the same noised images under the null label"
    )
    null_fraction: Fraction = Field(
        0.1, description="teacher targets: share of retain rows under the null label"
    )
    held_fraction: Fraction = Field(
        0.2, description="teacher targets: share of retain rows under labels that were forgotten earlier"
    )
    uniformity_weight: float = Field(
        0.0,
        ge=0,
        description=(
            "unconditional models: weight of the judge's pull towards the kept classes, in L_r and L_f;"
            " 0: off"
        ),
    )
    latent_reflection: bool = Field(
        False,
        description=(
            "unconditional models: L_x on the forgotten rows; where they lie, what the base gives on the kept"
            " side of the edge"
        ),
    )
    share_noise: bool = Field(False, description="L_f samples the timestep and noise of L_x")


class Evaluate(Sampling):
    every: int = Field(2, ge=1, description="steps between two checks")
    samples: int = Field(200, ge=20, description="images a check samples for the forgotten classes together")
    retain_classes: int | None = Field(
        None,
        ge=1,
        description="retained classes to sample: exchange, nearest, others by seed; absent: all of them",
    )
    rotation: int | None = Field(
        None,
        ge=2,
        description=(
            "retained classes that a check samples, all in turn from check to check: for many classes;"
            " the measures before and after sample every one; absent: all of them in every check"
        ),
    )
    first_look: int | None = Field(
        None,
        ge=4,
        description=(
            "images of the forgotten classes that a check samples first; where these alone keep the share of"
            " all evaluate.samples from going below the target, it samples no more; absent: all at once"
        ),
    )
    final_samples: int = Field(500, ge=100, description="the same before and after, on fresh noise")
    final_retain_samples: int = Field(100, ge=1, description="the same before and after")
    final_null_samples: int = Field(
        200, ge=0, description="images under the null label before and after; 0: none"
    )
    sampler_steps: int = Field(12, ge=1, description="sampler steps of a check's images")
    membership_noises: int = Field(
        16, ge=1, description="named samples: noises over which a row's loss is averaged"
    )
    patience_steps: int = Field(
        16,
        ge=1,
        description="steps over which every check must stay below the target before the run is settled",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of the network while it samples; judge and decoder are in fp32"
    )
    retention_floor: Fraction | None = Field(
        0.7,
        description=(
            "share of the base model's retain_accuracy; a run that falls below it stops and returns to its"
            " best check; null: never"
        ),
    )
    to_the_end: bool = Field(
        False,
        description="go on to optim.max_steps although the run is settled: depth weights takes all of them",
    )
    floor_patience: int = Field(3, ge=1, description="checks in a row below the floor that stop a run")
    max_checks: int | None = Field(
        None,
        ge=1,
        description="checks after which a run ends, settled or not; absent: optim.max_steps decides",
    )
    asynchronous: bool = Field(
        False, description="check in Ray tasks beside the training, which goes on meanwhile"
    )
    cpus: float = Field(0.5, ge=0, description="asynchronous: CPUs of such a task")
    gpus: float = Field(0, ge=0, description="asynchronous: GPUs of such a task")
    timeout_s: float = Field(
        1200.0, gt=0, description="asynchronous: a check that takes longer, from its start, counts as failed"
    )
    attack_suite: Suite = Field(
        False,
        description=(
            "at the end, try to bring the class back (attacks says how); quick: a small suite, one free"
            " embedding; with method.depth weights and a reference true where nothing is said"
        ),
    )
    second_judge: str | None = Field(
        None,
        min_length=1,
        description=(
            "a classifier that takes no part in the run and judges the attacked images too: a name under"
            " models/, a folder or URI, or svm, a support vector machine fitted to the lake's images"
        ),
    )
    metrics: list[str] = Field(
        [],
        description="at the end, further metrics of jobs/evaluate.py, such as leakage and loss_by_timestep",
    )
    reference: str | None = Field(
        None,
        description="name or URI of a model trained without the forgotten rows, to compare with at the end",
    )


# what pipeline/unlearning/methods/table.py says of them, which this room cannot ask: a test compares
SECOND_ORDER = ("uno", "uno_s")  # methods whose gradient has a second derivative in it
ASKS_TEACHER = ("esd",)  # methods that ask the base model whatever method.targets says


def _is_vae(size: str) -> bool:
    return size.startswith("vae")


class UnlearnConfig(SeededConfig):
    conditions: ClassVar[tuple[Only, ...]] = (
        while_("evaluate.cpus evaluate.gpus evaluate.timeout_s", "evaluate.asynchronous", True),
        while_("attacks evaluate.second_judge", "evaluate.attack_suite", True, "quick"),
        Only(keys=("evaluate.first_look",), switches=("request.classes",)),
        Only(
            keys=("evaluate.rotation", "evaluate.first_look"),
            switches=("model.size",),
            needed=" a model with labels",
            holds=lambda size: not _is_vae(size),
        ),
        Only(
            keys=("measuring",), switches=("evaluate.attack_suite", "evaluate.metrics", "evaluate.reference")
        ),
        Only(
            keys=("uniformity_judge", "gate.accept_trained_judge"),
            switches=("method.uniformity_weight",),
            needed=" above 0",
        ),
        Only(keys=("method.exchange_weight",), switches=("request.exchange", "method.latent_reflection")),
        Only(
            keys=("evaluate.membership_noises", "gate.max_membership_auc", "gate.require_memorised"),
            switches=("request.sample_ids",),
        ),
        Only(keys=("request.neighbours", "request.nearest_by"), switches=("request.classes",)),
        Only(keys=("request.sample_classes",), switches=("request.sample_ids",)),
        Only(keys=("request.stand_in_samples", "request.stand_in_weights"), switches=("request.stood_in",)),
        Only(keys=("method.held_fraction",), switches=("request.forgotten_earlier",)),
        Only(
            keys=("gate.max_leakage", "gate.max_null_leakage"),
            switches=("request.classes", "request.forgotten_earlier"),
        ),
        while_("method.hvp", "method.name", *SECOND_ORDER),
        Only(
            keys=("method.null_fraction",),
            switches=("method.targets", "method.name"),
            needed=("=teacher", f"={' or '.join(ASKS_TEACHER)}"),
            holds=lambda value: value in ("teacher", *ASKS_TEACHER),
        ),
        while_("redirection", "method.depth", "weights"),
        while_(
            "method.exchange_weight method.contrast method.share_noise method.latent_reflection"
            " method.uniformity_weight",
            "method.depth",
            "label",
        ),
        Only(keys=("gate.max_recall_excess",), switches=("evaluate.reference",)),
        Only(keys=("evaluate.floor_patience",), switches=("evaluate.retention_floor",), needed=" a share"),
        Only(keys=("encoder.sha256",), switches=("encoder.weights",)),
        Only(
            keys=("model.batch_norm", "gate.max_share_drift"),
            switches=("model.size",),
            needed=" a VAE, such as vae-mnist",
            holds=_is_vae,
        ),
        Only(
            keys=(
                *("gate.min_retain_accuracy", "gate.min_class_accuracy", "train.memory_gib"),
                *("gate.max_leakage", "gate.max_null_leakage", "evaluate.final_null_samples"),
                *("method.null_fraction", "evaluate.sampler", "measuring.sampler"),
            ),
            switches=("model.size",),
            needed=" a DiT, such as DiT-tiny",
            holds=lambda size: not _is_vae(size),
        ),
        ELASTIC,
    )

    run_id: Name | None = Field(
        None,
        description="absent: a new run; else that run is continued, or its result shown",
    )
    require_gate: bool = Field(
        False,
        exclude_if=operator.not_,
        description="end with exit code 4 where the gate fails; the version is registered all the same",
    )
    lake: LakeName = Field("digits", description="name or URI of the lake to read")
    model: Model = Model()
    encoder: Decoder = Decoder()
    request: Request = Request()
    method: Method = Method()
    redirection: Redirection = Field(
        Redirection(), description="what a run of method.depth weights trains beside the retain rows"
    )
    trainable: str = Field(
        "labels_and_adaln:2",
        description="labels_and_adaln:K, adaln:K (of the last K blocks), labels, all; of a VAE also decoder",
    )
    partition: Partition = Partition()
    optim: Optim = Optim()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    judge: Judge = Judge()
    uniformity_judge: Judge = Field(
        Judge(),
        description=(
            "the classifier that method.uniformity_weight trains against; weights absent: the second one that"
            " pretrain.py left, or else the judge that measures"
        ),
    )
    features: dict[str, Extractor] = Field(
        {}, description="further feature spaces of the distances before and after: inception, dinov2"
    )
    gate: Gate = Gate()
    measuring: Measuring = Field(
        Measuring(), description="how much evaluate.metrics, evaluate.reference and the attack suite sample"
    )
    attacks: Attacks = Field(Attacks(), description="what evaluate.attack_suite tries")
    tracking: Tracking = Tracking()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_depth(cls, values: Any) -> Any:
        return with_quick_suite(with_recall_gate(with_defaults_of_depth(values)), "evaluate")

    @model_validator(mode="after")
    def _redirection(self) -> "UnlearnConfig":
        require_redirection(self)
        return self

    @model_validator(mode="after")
    def _divisible(self) -> "UnlearnConfig":
        if self.train.tf32 and self.train.precision == "fp32" and self.method.hvp.startswith("fd"):
            raise ValueError(
                f"train.tf32: its rounding drowns the differences of method.hvp {self.method.hvp}; expected"
                " exact or recompute"
            )
        if self.method.hvp == "fd_forward" and self.train.precision == "bf16":
            raise ValueError(
                "method.hvp: got fd_forward with train.precision bf16, whose rounding drowns a one-sided"
                " difference; expected fd_central"
            )
        require_attacks(self)
        if self.gate.min_exchange_fidelity is not None and not self.request.exchange_classes_now:
            raise ValueError(
                f"gate.min_exchange_fidelity: got {self.gate.min_exchange_fidelity}, but no label of the"
                " request has an exchange class to look like; expected request.exchange, or"
                " gate.min_exchange_fidelity=null"
            )
        first, samples = self.evaluate.first_look, self.evaluate.samples
        if first is not None and first >= samples:
            raise ValueError(
                f"evaluate.first_look: got {first}, expected fewer than evaluate.samples ({samples})"
            )
        require_lanes(self)
        require_shardable(self, is_vae=_is_vae(self.model.size), second_order=SECOND_ORDER)
        return self
