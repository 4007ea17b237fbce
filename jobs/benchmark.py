"""Figures of the pipeline as ratios of paired runs; the last line printed is one JSON value.

python jobs/benchmark.py --config jobs/configs/benchmark_step.yaml [--set step.repeats=20 ...]
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.config import BenchmarkConfig
from pipeline.runtime import command_line


def run(config: BenchmarkConfig, dry_run: bool) -> None:
    from pipeline.benchmarks.table import BENCHMARKS
    from pipeline.errors import InputError

    if config.benchmark not in BENCHMARKS:
        raise InputError(f"benchmark: got {config.benchmark!r}, expected one of {', '.join(BENCHMARKS)}")
    if dry_run:
        print(f"would run benchmark {config.benchmark}")
        return
    print(json.dumps(BENCHMARKS[config.benchmark](config)))


if __name__ == "__main__":
    sys.exit(command_line.main(BenchmarkConfig, run, __doc__))
