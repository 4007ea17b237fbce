"""Measuring any model: a registered version, a run, a checkpoint, a folder of weights."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.attack_suite import Suite, with_quick_suite
from pipeline.config.base import LakeName, Section, SeededConfig, Version
from pipeline.config.conditions import Only, while_
from pipeline.config.measuring import Attacks, Measuring
from pipeline.config.request import Request
from pipeline.config.sampling import Sampler
from pipeline.config.tracking import Registry
from pipeline.config.weights import Decoder, Extractor, Judge


class Workers(Section):
    """Ray tasks that share the work, side by side."""

    workers: int = Field(2, ge=1, description="tasks at once")
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs that a task reserves")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs that a task reserves")
    threads: int = Field(1, ge=1, description="BLAS threads of a worker")


class Protocol(Section):
    """Samples for others' evaluators, beside the metrics."""

    protocol: Literal["none", "adm"] = Field(
        "none",
        description=(
            "adm: an .npz for the ADM evaluator, sampled as the papers of the model's family sample"
        ),
    )
    images: int = Field(50_000, ge=1, description="images in it, the classes in turn")
    batch: int = Field(64, ge=1, description="images sampled at once")
    cfg_scale: float | None = Field(None, ge=0, description="guidance; absent: the published one")
    steps: int | None = Field(None, ge=1, description="sampler steps; absent: the published number")
    sampler: Sampler | None = Field(None, description="another sampler than the published one")


class EvaluateConfig(SeededConfig):
    conditions: ClassVar[tuple[Only, ...]] = (
        while_(
            "evaluate.images evaluate.batch evaluate.cfg_scale evaluate.steps evaluate.sampler",
            "evaluate.protocol",
            "adm",
        ),
        while_("attacks second_judge", "attack_suite", True, "quick"),
        Only(keys=("encoder.sha256",), switches=("encoder.weights",)),
    )

    tracking: Registry = Registry()
    version: Version = "candidate"
    checkpoint: str | None = Field(
        None, description="of a run: a checkpoint's folder, or last; absent: what the run registered"
    )
    metrics: list[str] = Field(
        ["forget_fraction", "exchange_fraction", "exchange_density", "leakage", "retain_accuracy", "fid"],
        description="names of the metrics; [] for none",
    )
    attack_suite: Suite = Field(
        False, description="try to bring the class back; quick: a small suite, one free embedding"
    )
    second_judge: str | None = Field(
        None,
        min_length=1,
        description=(
            "a classifier that took no part in the run and judges the attacked images too: a name under"
            " models/, a folder or URI, or svm, a support vector machine fitted to the lake's images"
        ),
    )
    reference: str | None = Field(
        None, description="name or URI of a model trained without the forgotten rows, to compare with"
    )
    lake: LakeName | None = Field(None, description="absent: the run's")
    base: str | None = Field(
        None, description="name or URI of the model before; absent: the run's; without one there is no before"
    )
    encoder: Decoder = Field(
        Decoder(),
        description="what makes images of latents; absent: what came with the weights, or the run's",
    )
    judge: Judge = Judge()
    features: dict[str, Extractor] | None = Field(
        None,
        description=(
            "feature spaces of the distances beside the judge's: inception, dinov2; absent: the run's"
        ),
    )
    request: Request = Field(Request(), description="what it was asked to forget, where no run says it")
    measuring: Measuring = Measuring()
    attacks: Attacks = Attacks()
    evaluate: Protocol = Protocol()
    train: Workers = Workers()
    output: str | None = Field(
        None, description="JSON to write; absent: evaluations/ in the run's folder, or under storage"
    )

    @model_validator(mode="before")
    @classmethod
    def _quick_suite(cls, values: Any) -> Any:
        return with_quick_suite(values)
