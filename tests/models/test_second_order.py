"""The hand-made second derivatives against finite differences and PyTorch's own double backward."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import second_order_attention
from models.second_order import attention, gelu, layer_norm, second_order

EPS = 1e-6


def plain_attention(qkv: Tensor) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return (torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, dim=-1) @ v).transpose(1, 2)


def plain_layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()


def plain_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "gelu": (gelu, plain_gelu, [(2, 3, 5)]),
    "layer_norm": (lambda x: layer_norm(x, EPS), plain_layer_norm, [(2, 3, 8)]),
    "attention": (attention, plain_attention, [(2, 3, 3, 2, 4)]),
}


def inputs(shapes: list[tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [
        (2 * torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype).requires_grad_()
        for shape in shapes
    ]


def derivatives(function: Callable[..., Tensor], xs: list[Tensor], seed: int) -> list[Tensor]:
    """The value, the gradient along a random direction, and the gradient of that gradient along another."""
    g = torch.Generator().manual_seed(seed)

    def like(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=g, dtype=torch.float64).to(tensor.dtype)

    y = function(*xs)
    cotangent = like(y).requires_grad_()
    first = torch.autograd.grad(y, xs, cotangent, create_graph=True)
    second = torch.autograd.grad(first, [*xs, cotangent], [like(f) for f in first])
    return [y, *first, *second]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_derivatives_pass_a_finite_difference_check(name: str, seed: int) -> None:
    function, _, shapes = CASES[name]
    xs = inputs(shapes, seed)
    with second_order():
        assert torch.autograd.gradcheck(function, xs)
        assert torch.autograd.gradgradcheck(function, xs)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_derivatives_are_those_of_the_formula(name: str, dtype: torch.dtype, tolerance: float) -> None:
    function, plain, shapes = CASES[name]
    wanted = derivatives(plain, inputs(shapes, 3), 4)
    with second_order():
        got = derivatives(function, inputs(shapes, 3, dtype), 4)
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == dtype
        assert ((a.double() - b).norm() / b.norm()).item() < tolerance


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_the_same_outside(name: str) -> None:
    function, _, shapes = CASES[name]
    found = []
    for within in (False, True):
        xs = inputs(shapes, 5)
        if within:
            with second_order():
                y = function(*xs)
        else:
            y = function(*xs)
        found.append([y, *torch.autograd.grad(y.square().sum(), xs)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_that_does_not_depend_on_the_result_is_differentiated_all_the_same(name: str) -> None:
    """Its last pass back has nothing to say of the result itself, as in the loss of a linear layer behind
    it."""
    function, plain, shapes = CASES[name]
    second = []
    for derived, within in ((plain, nullcontext()), (function, second_order())):
        xs = inputs(shapes, 6)
        with within:
            y = derived(*xs)
            direction = torch.arange(y.numel(), dtype=y.dtype).cos().view(y.shape)
            (first,) = torch.autograd.grad(y, xs, direction, create_graph=True)
        second += torch.autograd.grad(first.square().sum(), xs)
    torch.testing.assert_close(second[1], second[0], rtol=1e-9, atol=1e-12)


def test_large_and_strided_tensors() -> None:
    """Longer than one piece that is worked on at a time, and not contiguous."""
    base = torch.randn(300, 301, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for x in (
        base.clone().requires_grad_(),
        base.clone().T.requires_grad_(),
        base[:, ::2].clone()[::3].requires_grad_(),
    ):
        wanted = derivatives(lambda v: F.gelu(v, approximate="tanh"), [x], 1)
        with second_order():
            got = derivatives(gelu, [x], 1)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_choice_ends_with_the_context_even_after_an_error() -> None:
    """Outside, attention is the fused kernel, which has no second derivative: the cheap path is back."""
    with pytest.raises(KeyError), second_order():
        derivatives(attention, inputs(CASES["attention"][2], 0, torch.float32), 0)
        raise KeyError
    with pytest.raises(RuntimeError, match="not implemented"):
        derivatives(attention, inputs(CASES["attention"][2], 0, torch.float32), 0)


def test_attention_is_the_same_for_all_heads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """How an accelerator does it; one head after the other is how a CPU does."""
    one_by_one = derivatives(second_order_attention.attention, inputs(CASES["attention"][2], 0), 1)
    monkeypatch.setattr(second_order_attention, "_one_by_one", lambda qkv: False)
    for whole, cut in zip(
        derivatives(second_order_attention.attention, inputs(CASES["attention"][2], 0), 1),
        one_by_one,
        strict=True,
    ):
        torch.testing.assert_close(whole, cut, rtol=1e-12, atol=1e-12)


def test_attention_in_bfloat16_is_as_good_as_bfloat16_is() -> None:
    shape = [(2, 16, 3, 2, 8)]
    exact = derivatives(plain_attention, inputs(shape, 0), 1)
    # a CPU's attention of first order is the fused kernel in float32 alone
    for function in (second_order_attention.attention, attention):
        for half, full in zip(derivatives(function, inputs(shape, 0, torch.bfloat16), 1), exact, strict=True):
            assert half.dtype == torch.bfloat16
            assert ((half.double() - full).norm() / full.norm()).item() < 0.03
