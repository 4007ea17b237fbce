"""The step on two workers of one thread against one worker on the same global batch, and what of it is the
all-reduce.

Two processes hold the model. In turn, one of them takes steps on the whole batch while the other waits; both
take steps on half of it each, as strangers; and both do so together. Whatever else the machine does, it does
to all three. Strangers share nothing but the machine's caches and memory: no way of joining them can be
faster. CPU time is the busiest rank's, without its waiting: it is what the wall time comes to where every
worker has a core of its own.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.benchmarks import start_up
from pipeline.benchmarks.step import chosen, model_of, rows_of
from pipeline.config import BenchmarkConfig, Train, parse
from pipeline.errors import InputError
from pipeline.runtime.stopwatch import Stopwatch
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.gradients import Gradients, LocalGradients
from pipeline.unlearning.losses import Weights, build_terms
from pipeline.unlearning.methods.table import METHODS, method_settings
from pipeline.unlearning.noising import Rows, StepRows

Seconds = dict[str, float]


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """The figures as one JSON value; every time is a median over bursts, per step."""
    settings = config.scaling
    able = [name for name, method in METHODS.items() if not method.own]
    if settings.method not in able:
        raise InputError(f"scaling.method: got {settings.method!r}, expected one of {', '.join(able)}")
    if settings.start_up:
        start_up.require_inputs(config)
    with tempfile.TemporaryDirectory() as folder:
        if settings.ray:
            plain, under = plain_and_under_ray(config, folder)
            worlds = {"plain": plain, "ray": under}
        else:
            worlds = {"plain": plain_world(config, folder)}
    report: dict[str, Any] = {"benchmark": "scaling", "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    report |= {name: _figures(ranks) for name, ranks in worlds.items()}
    if settings.ray:
        report["ray_over_plain"] = {
            kind: round(report["ray"]["two_workers"][kind] / report["plain"]["two_workers"][kind], 4)
            for kind in ("cpu_seconds", "wall_seconds")
        }
    if settings.start_up:
        report["start_up_seconds"] = start_up.run(config)
    return {**report, "setting": settings.model_dump() | {"threads": config.threads}}


def _figures(ranks: list[list[Seconds]]) -> dict[str, Any]:
    """Medians over rounds of the busiest rank's seconds per step, and of the ratios within a round.

    `apart_over_one`: what the machine allows, two processes on half of the batch each that have nothing to do
    with each other.
    `reduce_share`: of the wall time, on the rank that waits least in a round, since the other one also waits
    for it.
    """
    rounds = list(zip(*ranks, strict=True))
    kinds = ("cpu_seconds", "wall_seconds")

    def busiest(name: str, both: tuple[Seconds, ...]) -> float:
        return max(rank[name] for rank in both)

    def median(values: Iterator[float]) -> float:
        return round(statistics.median(values), 5)

    def over(name: str, other: str, kind: str) -> float:
        return median(busiest(f"{name}/{kind}", both) / busiest(f"{other}/{kind}", both) for both in rounds)

    return {
        "one_worker": {kind: median(busiest(f"alone/{kind}", both) for both in rounds) for kind in kinds},
        "two_workers": {kind: median(busiest(f"both/{kind}", both) for both in rounds) for kind in kinds},
        "two_over_one": {kind: over("both", "alone", kind) for kind in kinds},
        "apart_over_one": {kind: over("apart", "alone", kind) for kind in kinds},
        "two_over_apart": {kind: over("both", "apart", kind) for kind in kinds},
        "reduce_share": median(
            min(rank["both/reduce"] / rank["both/wall_seconds"] for rank in both) for both in rounds
        ),
    }


def bursts(config: BenchmarkConfig, folder: str) -> list[Seconds]:
    """On one of two ranks with a process group: the seconds per step of every round, alone and together."""
    torch.set_num_threads(config.threads)
    settings = config.scaling
    model = model_of(settings.width, settings.depth, settings.tokens, config.seed)
    params = list(chosen(model, settings.trainable, "scaling").values())
    whole = rows_of(model, settings.batch, config.seed)
    together = Collectives()
    rank = together.rank
    half = StepRows(
        **{name: part.part(rank, 2) for name, part in vars(whole).items() if isinstance(part, Rows)}
    )
    own = Collectives([dist.new_group([each]) for each in range(2)][rank])

    def burst(rows: StepRows, collectives: Collectives) -> Seconds:
        with Stopwatch() as watch:
            wall, cpu = time.perf_counter(), time.process_time()
            for index in range(settings.burst):
                terms = build_terms(model, rows, Weights(), teacher=None)
                local = LocalGradients(params=params, terms=terms)
                gradients = Gradients(index=index, local=local, collectives=collectives)
                METHODS[settings.method].gradient(gradients, method_settings(settings.method, {}))
            spent = {
                "cpu_seconds": time.process_time() - cpu,
                "wall_seconds": time.perf_counter() - wall,
                **watch.lap(),
            }
        return {name: value / settings.burst for name, value in spent.items()}

    rounds = []
    for index in range(settings.rounds + 1):
        with _turn(folder, rank):
            round_: Seconds = {"alone/cpu_seconds": 0.0, "alone/wall_seconds": 0.0}
            if rank == 0:
                round_ = {f"alone/{name}": value for name, value in burst(whole, own).items()}
            dist.barrier()
            round_ |= {f"apart/{name}": value for name, value in burst(half, own).items()}
            dist.barrier()
            round_ |= {f"both/{name}": value for name, value in burst(half, together).items()}
            dist.barrier()
        if index:  # the first warms up
            rounds.append({"both/reduce": 0.0, **round_})
    return rounds


@contextmanager
def _turn(folder: str, rank: int) -> Iterator[None]:
    """One world at a time: its first rank holds the file, the other follows it."""
    import fcntl

    with (Path(folder) / "turn").open("w") as file:
        if rank == 0:
            fcntl.flock(file, fcntl.LOCK_EX)
        dist.barrier()
        yield
        if rank == 0:
            fcntl.flock(file, fcntl.LOCK_UN)
    time.sleep(0.02)  # whoever waits gets it


def plain_world(config: BenchmarkConfig, folder: str) -> list[list[Seconds]]:
    """Both ranks in processes of their own, as torchrun would start them."""
    import torch.multiprocessing as mp

    mp.spawn(_rank, (config, folder), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _rank(rank: int, config: BenchmarkConfig, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        torch.save(bursts(config, folder), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def plain_and_under_ray(
    config: BenchmarkConfig, folder: str
) -> tuple[list[list[Seconds]], list[list[Seconds]]]:
    """The rounds of both ranks (plain, under Ray Train): both worlds are up at once and take turns, burst by
    burst."""
    from pipeline.runtime import cluster_ray
    from pipeline.training.launch_ray import launch

    cluster_ray.connect(3)
    train = Train(workers=2, threads=config.threads, max_failures=0)
    arguments = {"config": config.model_dump(mode="json"), "folder": folder}
    try:
        with ThreadPoolExecutor(1) as pool, tempfile.TemporaryDirectory() as notes:
            plain = pool.submit(plain_world, config, folder)
            under_ray = launch(_ray_rank, arguments, train, storage_uri=notes, name="scaling")
            return plain.result(), under_ray
    finally:
        cluster_ray.disconnect()


def _ray_rank(arguments: dict[str, Any]) -> list[list[Seconds]]:
    ranks: list[Any] = [None, None]
    dist.all_gather_object(ranks, bursts(parse(BenchmarkConfig, arguments["config"]), arguments["folder"]))
    return ranks
