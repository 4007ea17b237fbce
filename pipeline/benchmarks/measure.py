"""Paired measurements: variants run in turn, so that a machine whose speed drifts slows all of them alike."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

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
    held = peak = 0
    for event in sorted(
        (e for e in results.events() if e.name() == "[memory]" and e.device_type().name == "CPU"),
        key=lambda e: e.start_ns(),
    ):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def seconds_of(once: Callable[[], Any], device: torch.device) -> float:
    """Wall seconds on a GPU, from idle to idle; process CPU seconds on a CPU, which
    neighbours disturb less."""
    if device.type != "cuda":
        started = time.process_time()
        once()
        return time.process_time() - started
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    once()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started


def peak_of(once: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that tensors held: all of them on a GPU, those above what lay there before on a CPU."""
    if device.type != "cuda":
        return peak_bytes(once)
    torch.cuda.reset_peak_memory_stats(device)
    once()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device))


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    return ((value.double() - reference.double()).norm() / reference.double().norm()).item()
