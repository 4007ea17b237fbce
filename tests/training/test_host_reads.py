"""A step reads of the device once, between the gradient and the move: nothing else keeps a GPU waiting."""

from typing import Any

import pytest
import torch
from runs import run_config, run_inputs

from pipeline.benchmarks.host_reads import HostReads, host_side
from pipeline.training.step import _step_rows, advance, open_state
from pipeline.unlearning.penalty import dot, dots, penalty_directions, project_out

METHODS: dict[str, dict[str, Any]] = {
    "finetune": {"method.name": "finetune"},
    "exchange": {"method.name": "exchange"},
    "surgery": {"method.name": "surgery"},
    "uno_s": {"method.name": "uno_s"},
    "uno_s, recompute": {"method.name": "uno_s", "method.hvp": "recompute", "optim.micro_batch": 4},
    "uno_s, central differences": {"method.name": "uno_s", "method.hvp": "fd_central"},
    "erasediff": {"method.name": "erasediff"},
    "siss, separate moments": {"method.name": "siss", "optim.separate_moments": True},
}


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_a_step_reads_of_the_device_once(changes: dict[str, Any]) -> None:
    inputs = run_inputs(run_config(**changes))
    state = open_state(inputs)
    for iteration, batch in zip((1, 2, 3), inputs.streams.retain(0)):  # both kinds of step of uno_s
        rows = _step_rows(inputs, state, batch, iteration)
        counts = host_side(state.optimizer) + (
            host_side(state.forget_optimizer) if state.forget_optimizer else []
        )
        with HostReads(aside=counts) as reads:
            advance(inputs, state, rows, iteration)
        if iteration > 1:  # the first makes the step counts, which are set aside from then on
            assert dict(reads.counts) == {"tolist": 1}


def test_the_counter_sees_what_waits() -> None:
    x = torch.arange(4.0)
    with HostReads() as reads:
        if x.sum() > 2 and float(x[0]) == 0:
            x.max().item(), x.tolist(), x.nonzero(), x[x > 1]
    assert reads.counts == {
        **{"__bool__": 1, "__float__": 1, "item": 1, "tolist": 1, "nonzero": 1, "__getitem__": 1},
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_are_combined_to_the_bit_as_with_numbers_on_the_host(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    f = torch.randn((1 << 20) + 77, generator=g, dtype=torch.float64).to(dtype)
    r = (0.4 * f + 0.8 * torch.randn(f.shape, generator=g, dtype=torch.float64)).to(dtype)
    a, b, c = dot(f, r).item(), dot(f, f).item(), dot(r, r).item()
    d = dots(f, r)
    assert (d.a.item(), d.b.item(), d.c.item()) == (a, b, c)
    factor = 2 * a / (b * c + 1e-30)
    u, v, _ = penalty_directions(f, r)
    assert torch.equal(u, (r - a / (b + 1e-30) * f).mul_(factor))
    assert torch.equal(v, (f - a / (c + 1e-30) * r).mul_(factor))
    assert torch.equal(project_out(r, f, (d.a, d.b)), r - a / (b + 1e-30) * f)
