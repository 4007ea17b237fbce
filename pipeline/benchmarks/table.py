"""The benchmarks by name; each takes a BenchmarkConfig and returns one JSON value."""

from collections.abc import Callable
from typing import Any

from pipeline.benchmarks import checks, data, gpu, lake, scaling, step, sweep
from pipeline.config import BenchmarkConfig

BENCHMARKS: dict[str, Callable[[BenchmarkConfig], dict[str, Any]]] = {
    "step": step.run,
    "scaling": scaling.run,
    "sweep": sweep.run,
    "data": data.run,
    "checks": checks.run,
    "gpu": gpu.run,
    "lake": lake.run,
}
