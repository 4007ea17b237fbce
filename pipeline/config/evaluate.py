"""Measuring any model: a registered version, a run, a checkpoint, a folder of weights."""

from pydantic import Field

from pipeline.config.base import JobConfig, Section, Version
from pipeline.config.measuring import Attacks, Measuring
from pipeline.config.tools import CompareConfig
from pipeline.config.unlearn import Decoder, Extractor, Judge, Request, Tracking


class Workers(Section):
    """Ray tasks that share the work, side by side."""

    workers: int = Field(2, ge=1)
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    threads: int = Field(1, ge=1, description="BLAS threads of a worker")


class EvaluateConfig(JobConfig):
    tracking: Tracking = Tracking()
    version: Version = "candidate"
    checkpoint: str | None = Field(
        None, description="of a run: a checkpoint's folder, or last; absent: what the run registered"
    )
    measures: list[str] = Field(
        ["forget_fraction", "exchange_density", "leakage", "retain_accuracy", "fid"],
        description="names of the measures; [] for none",
    )
    battery: bool = Field(False, description="try to bring the class back")
    gold: str | None = Field(
        None, description="name or URI of a model trained without the forgotten rows, to compare with"
    )
    lake: str | None = Field(None, description="absent: the run's")
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
    train: Workers = Workers()
    output: str | None = Field(
        None, description="JSON to write; absent: evaluations/ in the run's folder, or under storage"
    )


class AttackMethodsConfig(CompareConfig):
    """A comparison whose runs are attacked: see jobs/attack_methods.py."""

    references: bool = Field(
        True,
        description="rows for the base model and, where it was pretrained, for one that never saw the class",
    )
    battery: list[str] = Field(
        ["none", "finetune", "int8", "embedding from own", "embedding from mean", "embedding from random"],
        min_length=1,
        description="names of the attacks",
    )
    measuring: Measuring = Measuring()
    attacks: Attacks = Attacks()
