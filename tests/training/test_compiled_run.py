"""Steps with their passes of first order traced by torch.compile move the weights as plain steps do; exact
penalties stay out of it."""

import torch
from runs import run_config, run_inputs
from torch import Tensor

from models.compiling import compile_first_order
from pipeline.training.step import Inputs, open_state, train_step


def two_steps(inputs: Inputs) -> list[Tensor]:
    state = open_state(inputs)
    for iteration, batch in zip((1, 2), inputs.streams.retain(0)):
        train_step(inputs, state, batch, iteration)
    return [parameter.detach().clone() for parameter in state.named.values()]


def test_steps_are_the_same() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    config = run_config(**{"method.name": "uno_s"})  # a step with an exact penalty, then one of surgery
    plain, inputs = two_steps(run_inputs(config)), run_inputs(config)
    # traced, not generated: tests/models/test_compiling.py does that
    compile_first_order(inputs.model.net, backend="eager")
    traced = two_steps(inputs)
    assert (
        torch._dynamo.utils.counters["frames"]["ok"] > 0 and torch._dynamo.utils.counters["graph_break"] == {}
    )
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(traced, plain, strict=True))
