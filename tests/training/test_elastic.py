"""A run goes on with fewer workers, or more, and what comes out is the same to the bit."""

from typing import Any

import pytest
import torch
from distributed import run_world
from runs import run_config, run_inputs

from models.weights import weights_digest
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.elastic import micro_batches, paired_sum, rank_rows, usable_world_size, virtual_ranks
from pipeline.training.loop import Hooks, Interrupted, unlearn
from pipeline.unlearning.collectives import Collectives

ELASTIC = {
    "train.workers": [1, 4],
    "partition.lanes": 8,
    "optim.batch_size": 16,
    "optim.max_steps": 3,
    "optim.ema": 0.5,
}
RUNS: dict[str, dict[str, Any]] = {
    "uno_s": {"method.name": "uno_s"},
    "uno, data, in micro-batches": {"method.name": "uno", "method.targets": "data", "optim.micro_batch": 2},
    "uno, recompute": {"method.name": "uno", "method.hvp": "recompute"},
    "uno, fd_central": {"method.name": "uno", "method.hvp": "fd_central"},
    "uno, fd_forward": {"method.name": "uno", "method.hvp": "fd_forward"},
    "salun, primed": {"method.name": "salun", "optim.moment_warmup_steps": 1},
}


def summed() -> torch.Tensor:
    """Numbers whose sum over four ranks depends on the order, as the ranks of this process's world add them
    up."""
    rank, world_size = Collectives().rank, Collectives().world_size
    return Collectives(ordered=True).mean(10.0 ** torch.arange(-8, 8) * (rank + 1) / 3) * world_size


def trained() -> list[Any]:
    """The digests of the weights that each of `RUNS` trains in this process's world, and a sum over it."""
    found = {
        name: weights_digest(unlearn(run_inputs(run_config(**ELASTIC, **changes))).trained)
        for name, changes in RUNS.items()
    }
    return [found, summed()]


def test_the_number_of_workers_changes_no_bit() -> None:
    alone, _ = trained()
    assert len(set(alone.values())) == len(RUNS)
    parts = [10.0 ** torch.arange(-8, 8) * (rank + 1) / 3 for rank in range(4)]
    expected = (parts[0] + parts[2]) + (parts[1] + parts[3])
    assert torch.equal(paired_sum([parts[j].clone() for j in (0, 2, 1, 3)]), expected)
    for found, total in run_world(4, trained):
        assert found == alone and torch.equal(total, expected)


def stopped_among_two_and_continued() -> list[Any]:
    """On each of two ranks: the whole run's digest, and the checkpoint of one that only the other rank is
    told to stop after step 3."""
    changes = {**ELASTIC, "optim.max_steps": 6}  # two of four: each stands for two
    saved: list[dict[str, bytes]] = []
    taken: list[int] = []
    channels: dict[str, Any] = {
        "save": lambda checkpoint: saved.append(checkpoint.to_files()),
        "timing": lambda seconds: taken.append(1),
    }
    inputs = run_inputs(run_config(**changes))
    rank = inputs.collectives.rank
    told: Any = lambda: "told to" if rank == 1 and len(taken) >= 2 else None  # noqa: E731
    with pytest.raises(Interrupted):
        unlearn(inputs, hooks=Hooks(**channels, interrupted=told))
    files = {name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in saved[-1].items()}
    return [weights_digest(unlearn(run_inputs(run_config(**changes))).trained), files]


def test_two_ranks_stop_together_and_one_goes_on_to_the_same_weights() -> None:
    changes = {**ELASTIC, "optim.max_steps": 6}
    for whole, files in run_world(2, stopped_among_two_and_continued):
        start = Checkpoint.from_files({name: bytes(data.numpy()) for name, data in files.items()})
        assert start.iteration == 3
        assert weights_digest(unlearn(run_inputs(run_config(**changes)), start).trained) == whole


def test_a_virtual_rank_has_what_the_worker_it_stands_for_would_have() -> None:
    """Rows of lane l are called l; a worker of `world` has the lanes rank, rank + world, ... in turn."""
    lanes, full = 16, 8
    for world_size, order in ((8, [0]), (4, [0, 1]), (2, [0, 2, 1, 3]), (1, [0, 4, 2, 6, 1, 5, 3, 7])):
        for rank in range(world_size):
            rows = [lane for lane in range(rank, lanes, world_size) for _ in range(3)]
            count = full // world_size
            taken = [[rows[i] for i in places] for places in rank_rows(count, lanes // world_size, 3)]
            assert taken == [
                [lane for lane in range(rank + j * world_size, lanes, full) for _ in range(3)] for j in order
            ]


def test_fewer_workers_cut_their_share_so_that_none_holds_more() -> None:
    assert [usable_world_size(8, alive) for alive in range(1, 10)] == [1, 2, 2, 4, 4, 4, 4, 8, 8]
    elastic = run_config(**{"train.workers": [1, 4], "optim.batch_size": 16, "partition.lanes": 4})
    assert [micro_batches(elastic, 16 // world_size) for world_size in (1, 2, 4)] == [4, 2, 1]
    fixed = run_config(**{"train.workers": 4, "optim.batch_size": 16, "partition.lanes": 4})
    assert [micro_batches(fixed, 16 // world_size) for world_size in (1, 2, 4)] == [1, 1, 1]
    assert micro_batches(run_config(**{"optim.micro_batch": 2}), 8) == 4
    assert [virtual_ranks(elastic, world_size) for world_size in (1, 2, 4)] == [4, 2, 1]
    assert [virtual_ranks(fixed, world_size) for world_size in (1, 2, 4)] == [1, 1, 1]
    six = run_config(**{"train.workers": [1, 6], "optim.batch_size": 12, "partition.lanes": 12})
    counts = [virtual_ranks(six, world_size) for world_size in (1, 2, 3, 6)]
    assert counts == [1, 1, 1, 1], "no order of six that fewer can follow"
