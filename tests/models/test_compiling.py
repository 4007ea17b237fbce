"""A compiled network gives what it gave, to rounding, and stands back where second derivatives are taken."""

import copy
import shutil

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.compiling import compile_first_order
from models.dit import DiT, dit_config
from models.second_order import second_order

CONFIG = dit_config("DiT-nano", depth=1, width=16)


def network() -> DiT:
    g, net = torch.Generator().manual_seed(0), DiT(CONFIG)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.1, generator=g)
    return net


def inputs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(n)
    return torch.randn(n, 4, 4, 4, generator=g), torch.arange(n) * 100, torch.arange(n)


def gradient(net: nn.Module, n: int, **options: bool) -> Tensor:
    wanted = [p for p in net.parameters() if p.requires_grad]
    return torch.cat(
        [g.reshape(-1) for g in torch.autograd.grad(net(*inputs(n)).square().mean(), wanted, **options)]
    )


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_values_and_gradients_are_the_same(backend: str) -> None:
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("the CPU's compiler back end needs g++")
    net = network()
    plain = copy.deepcopy(net)
    compile_first_order(net, backend=backend)
    assert torch.allclose(gradient(net, 3), gradient(plain, 3), rtol=1e-4, atol=1e-6)
    # every kind of pass is compiled by itself, which takes the other one many seconds
    if backend == "aot_eager":
        with torch.no_grad():
            assert torch.allclose(net(*inputs(3)), plain(*inputs(3)), rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["graph_break"] == {}


def test_second_derivatives_are_taken_of_the_plain_network() -> None:
    net = network()
    plain = copy.deepcopy(net)
    compile_first_order(net, backend="aot_eager")
    second = []
    for one in (net, plain):
        with second_order():
            first = gradient(one, 2, create_graph=True)
        second.append(
            torch.autograd.grad(
                first.square().sum(), [one.get_parameter("y_embedder.embedding_table.weight")]
            )[0]
        )
    assert torch.equal(*second) and second[0].norm() > 0
    assert torch._dynamo.utils.counters["frames"]["total"] == 0


def test_a_teacher_with_other_weights_runs_through_it_and_copies_are_plain() -> None:
    net = network()
    plain = copy.deepcopy(net)
    compile_first_order(net, backend="aot_eager")
    label = "y_embedder.embedding_table.weight"
    other = {label: plain.get_parameter(label).detach() * 2}
    with torch.no_grad():
        assert torch.allclose(
            functional_call(net, other, inputs(2)), functional_call(plain, other, inputs(2)), atol=1e-5
        )
        net.get_parameter(label).mul_(3)  # the optimiser moves parameters in place
        plain.get_parameter(label).mul_(3)
        assert torch.allclose(net(*inputs(2)), plain(*inputs(2)), atol=1e-5)
    assert (
        copy.deepcopy(net)._compiled_call_impl is None
        and net.state_dict().keys() == plain.state_dict().keys()
    )
