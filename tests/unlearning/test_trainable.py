"""Subsets of parameters by name."""

import pytest
import torch
from tiny import tiny_dit

from models.generative import build, dit_description
from pipeline.unlearning.parameters import flat, select, unflat

LABELS = {"y_embedder.embedding_table.weight"}


def adaln(*blocks: int) -> set[str]:
    return {f"blocks.{index}.adaLN_modulation.1.{kind}" for index in blocks for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("labels", LABELS),
        ("adaln:1", adaln(1)),
        ("adaln:2", adaln(0, 1)),
        ("labels_and_adaln:1", LABELS | adaln(1)),
        ("labels_and_adaln:2", LABELS | adaln(0, 1)),
    ],
)
def test_subsets_by_name(name: str, wanted: set[str]) -> None:
    model = tiny_dit()
    chosen = select(model, name)
    assert set(chosen) == wanted
    assert {key for key, p in model.net.named_parameters() if p.requires_grad} == wanted
    assert all(chosen[key] is model.net.get_parameter(key) for key in chosen)


@pytest.mark.parametrize("size", ["DiT-tiny", "DiT-S/2"])
def test_all_is_everything_but_the_positions(size: str) -> None:
    with torch.device("meta"):
        model = build(dit_description(size, shape=(1, 8, 8), num_classes=10, class_names=[""] * 10))
    assert set(select(model, "all")) == {key for key, _ in model.net.named_parameters()} - {"pos_embed"}


def test_a_new_choice_replaces_the_one_before() -> None:
    model = tiny_dit()
    select(model, "all")
    select(model, "labels")
    assert {key for key, p in model.net.named_parameters() if p.requires_grad} == LABELS


@pytest.mark.parametrize(
    "name", ["label", "labels:x", "adaln", "adaln:", "labels_and_adaln", "", "adaln:-1", "pos_embed"]
)
def test_unknown_subsets_list_the_valid_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected one of labels_and_adaln:K, adaln:K, labels, all"):
        select(tiny_dit(), name)


@pytest.mark.parametrize("name", ["adaln:0", "adaln:3", "labels_and_adaln:99"])
def test_more_blocks_than_the_model_has_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected 1 to 2"):
        select(tiny_dit(), name)


def test_flat_and_unflat_are_inverse() -> None:
    params = [torch.randn(3, 2), torch.randn(()), torch.randn(4)]
    vector = flat(params, params)
    assert vector.shape == (11,)
    assert all(torch.equal(a, b) for a, b in zip(unflat(vector, params), params, strict=True))
    with_gap = flat([params[0], None, params[2]], params)
    assert with_gap[6] == 0 and torch.equal(with_gap[7:], params[2])


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_flat_vectors_are_float32_or_better(dtype: torch.dtype, wanted: torch.dtype) -> None:
    params = [torch.ones(2, dtype=dtype)]
    assert flat(params, params).dtype == wanted
    assert unflat(flat(params, params), params)[0].dtype == dtype
