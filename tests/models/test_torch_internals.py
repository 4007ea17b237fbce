"""What is used of torch beyond its public interface still does what the memory plan needs."""

import pytest
import torch
import torch.nn.functional as F

from models.compat import AsOnGpu, LiveBytes, OnMeta
from models.generative import build, dit_description

LOST = "the memory plan (--dry-run, train.memory_gib) counts wrong: models/compat.py"


def test_live_bytes_are_the_most_that_storages_held_at_once() -> None:
    with LiveBytes() as live:
        x = torch.empty(1000, device="meta")
        (x + 1).mul_(2)  # a second storage, let go at once; in place makes none
        y = (x + 1).view(10, 100).t()  # one more, whatever its views
        del x, y
    assert (live.peak, live.now) == (8000, 0), LOST


def test_attention_on_a_gpu_keeps_no_table() -> None:
    with OnMeta(), torch.device("meta"), LiveBytes() as live, AsOnGpu("bf16"):
        q = torch.empty(1, 1, 4096, 8, requires_grad=True)
        out = F.scaled_dot_product_attention(q, q, q)
        live.peak = live.now
        out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and live.peak < 4096 * 4096, LOST


def test_products_are_lowered_and_norms_widened() -> None:
    with OnMeta(), torch.device("meta"), AsOnGpu("bf16"):
        x, w = torch.empty(4, 8), torch.empty(8, 8, requires_grad=True)
        y = F.linear(x, w)
        assert (y.dtype, F.layer_norm(y, (8,)).dtype) == (torch.bfloat16, torch.float32), LOST
    with OnMeta(), AsOnGpu("fp32"):
        assert F.linear(x, w).dtype == torch.float32, LOST


def test_numbers_are_asked_for_without_values() -> None:
    with OnMeta(), torch.device("meta"):
        x = torch.empty(3)
        assert x.norm().item() == 1.0 and bool(x.norm() == 0) is False, LOST
        index = torch.empty(2, dtype=torch.long)
    with OnMeta():
        assert torch.arange(5.0)[index.cpu()].device.type == "meta", LOST


def test_a_network_of_shapes_draws_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device torch's own initialisation would import its compiler."""

    def drawn(*arguments: object, **options: object) -> None:
        raise AssertionError("weights were drawn")

    for name in ("_no_grad_normal_", "_no_grad_uniform_", "_no_grad_fill_"):
        monkeypatch.setattr(torch.nn.init, name, drawn)
    description = dit_description("DiT-nano", shape=(1, 8, 8), num_classes=3, class_names=[])
    shapes = build(description, device="meta").net.state_dict()
    monkeypatch.undo()
    assert {name: value.shape for name, value in shapes.items()} == {
        name: value.shape for name, value in build(description).net.state_dict().items()
    }
