"""torch.compile of a network for first-order passes: training steps, a teacher, a sampler.

A compiled graph has no second derivative. Within `second_order()` the network runs as it is; everywhere else
it runs compiled. Parameters, names and copies of the network are untouched.
"""

from typing import Any

import torch
from torch import nn

from models.second_order import wanted


def compile_first_order(net: nn.Module, **options: Any) -> None:
    """Have calls of `net` run compiled from now on, where their gradient will not be differentiated again.

    The first call of a kind (shape, gradients on or off, autocast) compiles, which takes seconds to a minute.
    """
    plain = net._call_impl
    compiled = torch.compile(plain, **options)

    def call(*inputs: Any, **named: Any) -> Any:
        return plain(*inputs, **named) if wanted() else compiled(*inputs, **named)

    # where torch.nn.Module.compile puts its own; left out of copies and pickles like it
    net._compiled_call_impl = call
