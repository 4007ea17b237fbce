"""Steps with their passes of first order traced by torch.compile move the weights as plain steps do; exact
penalties stay out of it."""

import torch
from runs import run_config, run_inputs
from torch import Tensor

from models.compiling import compile_first_order
from pipeline.training.loop import Inputs, train_step
from pipeline.unlearning.losses import Teacher
from pipeline.unlearning.methods.table import METHODS
from pipeline.unlearning.optimizer import adamw
from pipeline.unlearning.parameters import select


def two_steps(inputs: Inputs) -> list[Tensor]:
    named = select(inputs.model, inputs.config.trainable)
    teacher, optimiser = Teacher(inputs.model, named), adamw(list(named.values()), lr=1e-2, weight_decay=0.0)
    for step, batch in zip((1, 2), inputs.retain(0)):
        method = METHODS[inputs.config.method.name]
        train_step(
            inputs, batch, step, step, method=method, named=named, teacher=teacher, optimiser=optimiser
        )
    return [parameter.detach().clone() for parameter in named.values()]


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
