"""The jobs around a finished run: generate, registry, compare, benchmark."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipeline.config.base import JobConfig, Section, Version
from pipeline.config.unlearn import Tracking


class GenerateConfig(JobConfig):
    tracking: Tracking = Tracking()
    version: Version = "candidate"
    labels: list[int] = Field([1], min_length=1)
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field([0, 1, 2, 3, 4, 5, 6, 7], min_length=1)
    cfg_scale: float | None = Field(None, ge=0, description="absent: the scale the model was registered with")
    steps: int | None = Field(
        None, ge=1, description="sampler steps; absent: those the model was registered with"
    )
    output: str | None = Field(
        None, description="PNG to write; absent: <storage>/generated/<model>-v<version>.png"
    )


class RegistryConfig(JobConfig):
    tracking: Tracking = Tracking()
    version: Version | None = Field(
        None, description="absent: candidate for show and promote, champion for verify"
    )
    override: str | None = Field(
        None,
        min_length=10,
        description="promote although the gate did not pass: the reason, which is recorded",
    )
    key: str | None = Field(
        None, description="Ed25519 private key (PEM file) that signs the certificate of a promoted version"
    )
    request: Annotated[str, BeforeValidator(str)] | None = Field(
        None, description="purge: the id of the request whose data goes"
    )
    public_key: str | None = Field(
        None, description="Ed25519 public key (PEM file) that verify holds the signature against"
    )
    replay: bool = Field(False, description="verify: run the request again as well, and compare the weights")


class CompareConfig(JobConfig):
    name: str = Field("digits", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    lake: str = "digits"
    seeds: list[int] = Field([0, 1, 2, 3, 4], min_length=1)
    pairs: list[tuple[int, int]] = Field(
        [(1, 7), (3, 5)], min_length=1, description="forgotten class, exchange class"
    )
    processes: int = Field(2, ge=1)
    unlearn: dict[str, Any] = Field({}, description="settings of the main job that all rows share")
    rows: dict[str, dict[str, Any]] = Field(
        min_length=1, description="name of a row -> the settings it changes, by dotted key"
    )


class StepBenchmark(Section):
    width: int = Field(384, ge=24, multiple_of=12)
    depth: int = Field(6, ge=1)
    tokens: int = Field(256, ge=4, description="a square number")
    batch: int = Field(2, ge=1, description="images of each kind")
    trainable: str = "labels_and_adaln:4"
    penalty: float = Field(0.02, gt=0)
    repeats: int = Field(11, ge=1)


class ScalingBenchmark(Section):
    """The same step on one worker and on two, and under Ray Train and under plain torch.distributed."""

    width: int = Field(384, ge=24, multiple_of=12)
    depth: int = Field(6, ge=1)
    tokens: int = Field(64, ge=4, description="a square number")
    batch: int = Field(8, ge=2, multiple_of=2, description="images of each kind in the global batch")
    trainable: str = "labels_and_adaln:4"
    method: str = "uno_s"
    rounds: int = Field(12, ge=2, description="bursts of each kind, in turn")
    burst: int = Field(2, ge=2, multiple_of=2, description="steps of one burst")
    ray: bool = Field(True, description="measure the loop under Ray Train beside the plain one")
    start_up: bool = Field(
        True,
        description=(
            "run the quickstart's job up to its first steps (needs its lake and models under storage)"
        ),
    )


class SweepBenchmark(Section):
    """The overhead of a sweep's trials (needs the quickstart's lake and models under storage)."""

    base: str = Field(
        "jobs/configs/quickstart.yaml", description="configuration of the main job that the trials start from"
    )
    ways: list[Literal["trainer", "inline_cold", "inline_warm"]] = Field(
        ["trainer", "inline_cold", "inline_warm"], min_length=1
    )
    trials: int = Field(3, ge=1, description="of each way, one at a time")
    max_steps: int = Field(4, ge=1)


class EvaluationBenchmark(Section):
    """What a check beside the training costs the steps it overlaps with (needs the quickstart's lake and
    models under storage)."""

    base: str = Field(
        "jobs/configs/quickstart.yaml",
        description="configuration of the main job whose step and check they are",
    )
    rounds: int = Field(6, ge=1, description="checks, each between steps with none")
    samples: int = Field(
        1000,
        ge=20,
        description=(
            "images a check draws for the forgotten classes together: many, so that it lasts for many steps"
        ),
    )


class DataBenchmark(Section):
    """Raw images into a lake, a partition's rows into workers."""

    images: int = Field(400, ge=10, description="photographs to prepare, made for the purpose")
    images_uri: str | None = Field(None, description="class folders of real ones instead")
    rows: int = Field(
        200_000, ge=2_000, description="latents of 4x32x32 in the lake; each takes 32 KB of temporary space"
    )
    batch: int = Field(64, ge=8, multiple_of=8, description="rows of the global batch")
    workers: int = Field(2, ge=1)
    steps: int = Field(30, ge=2, description="steps over which waiting is measured")
    repeats: int = Field(3, ge=1)


class ImageNetScale(Section):
    """What is measured on one kind of device."""

    size: str
    batches: list[int] = Field(min_length=1, description="images of each kind")
    precision: Literal["fp32", "bf16"]
    repeats: int = Field(5, ge=1, description="rounds; each takes every kind of step once, in turn")
    sampler_batch: int = Field(32, ge=1)
    sampler_steps: int = Field(50, ge=1)
    compile: bool = Field(False, description="the surgery step and the sampler through torch.compile as well")


class ImageNetBenchmark(Section):
    """The real step of the published architecture with random weights: on the GPU where there is one, else in
    small on the CPU."""

    trainable: str = "labels_and_adaln:4"
    penalty: float = Field(0.02, gt=0)
    gpu: ImageNetScale = ImageNetScale(size="DiT-XL/2", batches=[10, 32, 128], precision="bf16", compile=True)
    cpu: ImageNetScale = ImageNetScale(
        size="DiT-S/2", batches=[2], precision="fp32", repeats=3, sampler_batch=2, sampler_steps=4
    )


class BenchmarkConfig(JobConfig):
    benchmark: str = "step"
    threads: int = Field(1, ge=1)
    step: StepBenchmark = StepBenchmark()
    scaling: ScalingBenchmark = ScalingBenchmark()
    data: DataBenchmark = DataBenchmark()
    sweep: SweepBenchmark = SweepBenchmark()
    evaluation: EvaluationBenchmark = EvaluationBenchmark()
    imagenet: ImageNetBenchmark = ImageNetBenchmark()
