"""Paired measurements: variants run in turn, so that a machine whose speed drifts slows all of them alike."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def paired_cpu_seconds(
    variants: Mapping[str, Callable[[], None]], *, repeats: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Process CPU seconds of every variant in every round; each round runs all of them once, in order."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(warmup + repeats):
        for name, run in variants.items():
            gc.collect()
            started = time.process_time()
            run()
            if turn >= warmup:
                seconds[name].append(time.process_time() - started)
    return seconds


def ratio(seconds: Mapping[str, list[float]], over: str, under: str) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))


def peak_bytes(run: Callable[[], None]) -> int:
    """The most memory that tensors held at once during `run`, above what they held before (CPU allocator's
    own records)."""
    from torch.autograd.profiler import profile

    gc.collect()
    with profile(profile_memory=True, use_cpu=True) as recorded:
        run()
    results = recorded.kineto_results
    assert results is not None
    current = peak = 0
    for event in sorted(
        (e for e in results.events() if e.name() == "[memory]" and e.device_type().name == "CPU"),
        key=lambda e: e.start_ns(),
    ):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    return ((value.double() - reference.double()).norm() / reference.double().norm()).item()
