"""What is measured of the pipeline itself, and how often."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from pipeline.config.base import Section, SeededConfig
from pipeline.config.conditions import Only, while_


def _square(value: int) -> int:
    side = math.isqrt(value)
    if side * side != value:
        raise ValueError(f"got {value} tokens, expected a square number such as {side * side}")
    return value


Square = Annotated[int, AfterValidator(_square)]


class StepBenchmark(Section):
    width: int = Field(384, ge=24, multiple_of=12, description="of the network")
    depth: int = Field(6, ge=1, description="blocks of the network")
    tokens: Square = Field(256, ge=4, description="a square number")
    batch: int = Field(2, ge=1, description="images of each kind")
    trainable: str = Field("labels_and_adaln:4", description="subset of the parameters, as in the main job")
    penalty: float = Field(0.02, gt=0, description="weight of the penalty")
    repeats: int = Field(11, ge=1, description="rounds; each takes every kind of step once, in turn")


class ScalingBenchmark(Section):
    """The same step on one worker and on two, and under Ray Train and under plain torch.distributed."""

    width: int = Field(384, ge=24, multiple_of=12, description="of the network")
    depth: int = Field(6, ge=1, description="blocks of the network")
    tokens: Square = Field(64, ge=4, description="a square number")
    batch: int = Field(8, ge=2, multiple_of=2, description="images of each kind in the global batch")
    trainable: str = Field("labels_and_adaln:4", description="subset of the parameters, as in the main job")
    method: str = Field("uno_s", description="a method of pipeline/unlearning/methods/table.py")
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
        ["trainer", "inline_cold", "inline_warm"],
        min_length=1,
        description="ways of running a trial that are compared",
    )
    trials: int = Field(3, ge=1, description="of each way, one at a time")
    max_steps: int = Field(4, ge=1, description="steps of a trial")


class DataBenchmark(Section):
    """Raw images into a lake, a partition's rows into workers."""

    images: int = Field(400, ge=10, description="photographs to prepare, made for the purpose")
    images_uri: str | None = Field(None, description="class folders of real ones instead")
    rows: int = Field(
        200_000, ge=2_000, description="latents of 4x32x32 in the lake; each takes 32 KB of temporary space"
    )
    batch: int = Field(64, ge=8, multiple_of=8, description="rows of the global batch")
    workers: int = Field(2, ge=1, description="workers that the rows are streamed to")
    steps: int = Field(30, ge=2, description="steps over which waiting is measured")
    repeats: int = Field(3, ge=1, description="rounds; each takes every kind of step once, in turn")


class ChecksBenchmark(Section):
    """Pretended runs of many classes, replayed with all classes in a check and with the classes in turn."""

    runs: int = Field(50, ge=1, description="runs that are replayed")
    classes: int = Field(1000, ge=3, description="classes, one of them forgotten")
    samples: int = Field(200, ge=20, description="images of the forgotten class in a check")
    first_look: int = Field(40, ge=4, description="of these, those that a check in turn samples first")
    retain_samples: int = Field(20, ge=1, description="images of each class in a check of all retained ones")
    rotation: int = Field(500, ge=2, description="retained classes in a check in turn")
    rotation_samples: int = Field(2, ge=1, description="images of each of these")
    final_retain_samples: int = Field(20, ge=1, description="images of each retained class before and after")
    every: int = Field(5, ge=1, description="steps between two checks")
    patience_steps: int = Field(16, ge=1, description="as evaluate.patience_steps of the main job")
    max_steps: int = Field(100, ge=1, description="steps of a run")


class GpuBenchmark(Section):
    """Steps of each kind on a card, against the published step; in small on a CPU."""

    size: str = Field("DiT-XL/2", description="of the network, all weights random")
    side: int = Field(32, ge=4, multiple_of=2, description="of its latents, which have 4 channels")
    learn_sigma: bool = Field(True, description="predict the variance, as the published weights do")
    batches: list[int] = Field([10, 32], min_length=1, description="images of each kind, one after the other")
    trainable: str = Field("labels_and_adaln:4", description="subset of the parameters, as in the main job")
    penalty: float = Field(0.02, gt=0, description="weight of the penalty")
    precision: Literal["fp32", "bf16"] = Field("bf16", description="as train.precision of the main job")
    repeats: int = Field(5, ge=1, description="rounds; each takes every kind of step once, in turn")
    sampler_images: int = Field(32, ge=1, description="images sampled at once")
    sampler_steps: int = Field(20, ge=1, description="sampler steps")
    compile: bool = Field(True, description="take the steps of first order once more under torch.compile")
    budget_s: float = Field(420.0, gt=0, description="seconds after which nothing new is begun")


class LakeBenchmark(Section):
    """The partition of a request from a lake that is simulated."""

    rows: int = Field(100_000_000, ge=4_000, description="latents of 4x32x32 that the lake has")
    classes: int = Field(1000, ge=3, description="classes, all of one size; one is forgotten")
    batch: int = Field(64, ge=8, multiple_of=8, description="rows of the global batch")
    steps: int = Field(60, ge=1, description="steps of the run")


class BenchmarkConfig(SeededConfig):
    conditions: ClassVar[tuple[Only, ...]] = (
        *(
            while_(name, "benchmark", name)
            for name in ("step", "scaling", "data", "sweep", "checks", "gpu", "lake")
        ),
        while_("threads", "benchmark", "step", "scaling", "gpu"),
        while_("seed", "benchmark", "step", "scaling", "data", "checks", "gpu", "lake"),
    )

    benchmark: str = Field("step", description="a benchmark of pipeline/benchmarks/table.py")
    threads: int = Field(1, ge=1, description="BLAS threads of the process that is measured")
    step: StepBenchmark = StepBenchmark()
    scaling: ScalingBenchmark = ScalingBenchmark()
    data: DataBenchmark = DataBenchmark()
    sweep: SweepBenchmark = SweepBenchmark()
    checks: ChecksBenchmark = ChecksBenchmark()
    gpu: GpuBenchmark = GpuBenchmark()
    lake: LakeBenchmark = LakeBenchmark()
