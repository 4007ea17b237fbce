"""Weights as bytes, and judges."""

import pytest
import torch
from torch import nn

from models import weights
from models.judge import build_judge, initialise, small_cnn_description
from models.weights import WeightsError


def state() -> dict[str, torch.Tensor]:
    return {
        "b": torch.arange(6.0).view(2, 3),
        "a": torch.tensor(3, dtype=torch.int64),
        "c": torch.ones(2, dtype=torch.bfloat16),
    }


def test_digest_is_that_of_the_values() -> None:
    digest = weights.weights_digest(state())
    # the same on every machine and in every version
    assert digest == "439be9a49c74437a394a714202a19d05d08f2885fc474d9354bb2df78c33febd"
    assert weights.weights_digest(dict(reversed(state().items()))) == digest
    assert (
        weights.weights_digest({**state(), "b": torch.arange(6.0).view(3, 2).T.contiguous().view(2, 3)})
        != digest
    )
    transposed = torch.arange(6.0).view(2, 3).T.contiguous().T
    assert weights.weights_digest({**state(), "b": transposed}) == digest  # memory layout is not content
    for other in (
        {**state(), "b": state()["b"].view(3, 2)},
        {**state(), "b": state()["b"].double()},
        {**state(), "a": torch.tensor(4)},
    ):
        assert weights.weights_digest(other) != digest
    changed = state()
    changed["b"][1, 2] = torch.nextafter(changed["b"][1, 2], torch.tensor(9.0))
    assert weights.weights_digest(changed) != digest


def test_safetensors_round_trip_is_exact() -> None:
    back = weights.from_bytes(weights.to_bytes(state()), "here")
    assert back.keys() == state().keys()
    for name, tensor in state().items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor)
    with pytest.raises(WeightsError, match=r"folder/model.safetensors: not a readable"):
        weights.from_bytes(b"pickled?", "folder/model.safetensors")


def test_loading_names_what_does_not_fit() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    good = {name: tensor + 1 for name, tensor in net.state_dict().items()}
    for wrong, message in (
        ({name: t for name, t in good.items() if name != "1.bias"}, r"w: lacks 1\.bias;"),
        ({**good, "extra": torch.ones(1)}, "w: has unknown extra;"),
        ({**good, "0.weight": torch.ones(2, 3)}, r"w: has wrong shapes: 0\.weight \(2, 3\) for \(3, 2\)"),
        ({}, "and 1 more"),
    ):
        with pytest.raises(WeightsError, match=message):
            weights.load_into(net, wrong, "w")
    assert not torch.equal(net.state_dict()["0.weight"], good["0.weight"])  # a refusal leaves the model alone
    weights.load_into(net, good, "w")
    assert all(torch.equal(tensor, good[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 8, 10), (1, 28, 10), (3, 32, 7)])
def test_judge_takes_images_of_its_size(channels: int, size: int, classes: int) -> None:
    names = [str(label) for label in range(classes)]
    judges = [
        build_judge(
            small_cnn_description(shape=(channels, size, size), num_classes=classes, class_names=names)
        )
        for _ in range(2)
    ]
    for judge in judges:
        initialise(judge.net, torch.Generator().manual_seed(1))
    x = torch.rand(3, channels, size, size) * 2 - 1
    logits, features = judges[0].logits(x), judges[0].features(x)
    assert logits.shape == (3, classes) and features.shape == (3, judges[0].feature_size)
    assert torch.equal(logits, judges[1].logits(x))
    assert weights.weights_digest(judges[0].net.state_dict()) == weights.weights_digest(
        judges[1].net.state_dict()
    )


def test_unknown_judge_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got family 'forest', expected one of small_cnn"):
        build_judge({"family": "forest"})


def test_weights_of_another_kind_are_refused_or_rounded() -> None:
    net = nn.Linear(2, 2)
    whole = {"weight": torch.ones(2, 2, dtype=torch.int64), "bias": torch.ones(2)}
    with pytest.raises(WeightsError, match=r"^x: has whole numbers for weights: weight \(torch.int64\)"):
        weights.load_into(net, whole, "x")
    weights.load_into(net, {name: value.double() for name, value in whole.items()}, "x", shared=True)
    assert {value.dtype for value in net.state_dict().values()} == {torch.float32}
