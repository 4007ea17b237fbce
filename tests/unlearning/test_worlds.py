"""The same update from 1, 2 and 4 ranks; the collectives; a non-finite value stops every rank."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from distributed import run_world
from steps import naive_gradients, naive_uno, on_every_rank, run_all, take_step
from tiny import FLOWS, relative, tiny_step_rows

from pipeline.unlearning.collectives import Collectives, NonFiniteError
from pipeline.unlearning.losses import Weights
from pipeline.unlearning.methods.table import METHODS
from pipeline.unlearning.penalty import project_out

WORLDS = [1, 2, 4]


def work() -> dict[str, dict[str, Any]]:
    """Every method with both targets, those that alternate on either kind of step, the penalty in every exact
    form."""
    found: dict[str, dict[str, Any]] = {
        f"{method} {targets} 1": {"method": method, "weights": Weights(targets=targets)}
        for method in METHODS
        for targets in ("data", "teacher")
    }
    found |= {
        f"{method} data 2": {"method": method, "index": 2} for method in ("ascent_descent", "uno_s", "sfr_on")
    }
    for hvp, micro_batches in (("exact", 1), ("exact", 2), ("recompute", 1), ("recompute", 2)):
        found[f"uno {hvp} {micro_batches}"] = {"method": "uno", "hvp": hvp, "micro_batches": micro_batches}
    found |= {
        f"{method} {targets} {family}": {
            "method": method,
            "weights": Weights(targets=targets),
            "family": family,
            "micro_batches": 2,
        }
        for family in FLOWS
        for method, targets in (
            (name, "teacher" if name in ("exchange", "uno") else "data") for name in METHODS
        )
    }
    return found


def sums_and_means() -> dict[str, torch.Tensor]:
    collectives = Collectives()
    mine = torch.tensor([1.0, 10.0]) * (collectives.rank + 1)
    pending = collectives.mean_async(mine.clone())
    return {
        "rank": torch.tensor(collectives.rank),
        "world": torch.tensor(collectives.world_size),
        "sum": collectives.sum(mine.clone()),
        "mean": collectives.mean(mine.clone()),
        "mean_async": pending.wait(),
        "broadcast": collectives.broadcast(mine.clone()),
        "exact": collectives.sum(torch.tensor([2**40 + collectives.rank])),
        "largest": torch.tensor(
            [collectives.largest(collectives.rank), collectives.largest(-collectives.rank)]
        ),
    }


def non_finite(bad_ranks: list[int], name: str, value: float) -> str:
    collectives = Collectives()
    values = {name: torch.ones(3) for name in ("loss of keep", "gradient of forget")}
    if collectives.rank in bad_ranks:
        values[name][1] = value
    try:
        collectives.require_finite(values, step=17)
    except NonFiniteError as error:
        return str(error)
    return ""


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "updates": (on_every_rank, (work(),)),
    "collectives": (sums_and_means, ()),
    "nan on the last": (non_finite, ([3, 1, 0], "gradient of forget", float("nan"))),
    "inf on the first": (non_finite, ([0], "loss of keep", float("-inf"))),
    "all finite": (non_finite, ([], "loss of keep", 0.0)),
}


@pytest.fixture(scope="module", params=WORLDS, ids=lambda world_size: f"world {world_size}")
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What each rank of a world of 1, 2 or 4 found."""
    return run_world(request.param, run_all, FUNCTIONS)


def test_every_method_gives_the_update_of_one_process(ranks: list[dict[str, Any]]) -> None:
    for name, arguments in work().items():
        rows = tiny_step_rows(family=arguments.get("family", "dit"))
        wanted = take_step(**{**arguments, "micro_batches": 1, "hvp": "exact"}, rows=rows)
        for rank, found in enumerate(ranks):
            assert relative(found["updates"][name], wanted) < 1e-12, (name, rank)
            assert torch.equal(found["updates"][name], ranks[0]["updates"][name]), (name, rank)


def test_penalty_is_that_of_plain_double_backward(ranks: list[dict[str, Any]]) -> None:
    rows = tiny_step_rows()
    wanted = naive_uno(0, rows)
    for name in ("uno exact 1", "uno exact 2", "uno recompute 1", "uno recompute 2"):
        assert relative(ranks[0]["updates"][name], wanted) < 1e-12, name


def test_surgery_is_orthogonal_to_the_global_forget_gradient(ranks: list[dict[str, Any]]) -> None:
    g_f, g_r = naive_gradients(0, tiny_step_rows())
    got = ranks[0]["updates"]["surgery data 1"]
    assert abs((got @ g_f) / (got.norm() * g_f.norm())) < 1e-12
    assert relative(got, project_out(g_r, g_f)) < 1e-12


def test_sums_means_and_broadcasts(ranks: list[dict[str, Any]]) -> None:
    world_size = len(ranks)
    total = world_size * (world_size + 1) / 2
    for rank, found in enumerate(ranks):
        said = found["collectives"]
        assert said["rank"] == rank and said["world"] == world_size
        assert said["sum"].tolist() == [total, 10 * total]
        assert (
            said["mean"].tolist()
            == said["mean_async"].tolist()
            == [total / world_size, 10 * total / world_size]
        )
        assert said["broadcast"].tolist() == [1.0, 10.0]
        assert said["largest"].tolist() == [world_size - 1, 0]
        assert said["exact"].item() == world_size * 2**40 + world_size * (world_size - 1) // 2


def test_a_non_finite_value_stops_every_rank_and_is_named(ranks: list[dict[str, Any]]) -> None:
    world_size = len(ranks)
    last = ", ".join(str(rank) for rank in (0, 1, 3) if rank < world_size)
    for found in ranks:
        assert found["all finite"] == ""
        assert found["nan on the last"].startswith(
            f"step 17: gradient of forget is not finite on rank {last};"
        )
        assert found["inf on the first"].startswith("step 17: loss of keep is not finite on rank 0;")


def test_without_a_process_group_there_is_one_rank() -> None:
    said = sums_and_means()
    assert (said["rank"], said["world"]) == (0, 1)
    assert said["sum"].tolist() == said["mean"].tolist() == said["mean_async"].tolist() == [1.0, 10.0]
    assert non_finite([0], "gradient of forget", float("inf")).startswith(
        "step 17: gradient of forget is not finite on rank 0;"
    )
